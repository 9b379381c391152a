"""Noise schedules: how much of a latent is signal and how much is noise at each training timestep.

At timestep `t` a noisy latent is `x_t = √ᾱ_t · x0 + √(1 − ᾱ_t) · noise`. A network is trained to predict one mixture of
`x0` and `noise` (its prediction type), so `(x_t, output)` is a 2 × 2 linear map of `(x0, noise)`. This file has the
rows of that map and of its inverse.

Tables are computed in NumPy float64 and applied in float32. diffusers computes its tables in float32: plain schedules
agree to 1e-6 relative. With zero terminal SNR, ᾱ agrees to 1e-6 absolute; diffusers loses digits near the end by
cancellation, 4e-5 relative at t=998, where ᾱ = 2e-7.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int

from marigold_jax.diffusion.scheduler_config import SchedulerConfig
from marigold_jax.runtime.typed import shown

_BETAS = {
    "linear": lambda start, end, count: np.linspace(start, end, count, dtype=np.float64),
    "scaled_linear": lambda start, end, count: np.linspace(start**0.5, end**0.5, count, dtype=np.float64) ** 2,
}

# The weights of (x0, noise) in what the network predicts, given signal = √ᾱ and sigma = √(1 − ᾱ).
_PREDICTIONS = {
    "epsilon": lambda signal, sigma: (np.zeros_like(signal), np.ones_like(signal)),
    "sample": lambda signal, sigma: (np.ones_like(signal), np.zeros_like(signal)),
    "v_prediction": lambda signal, sigma: (-sigma, signal),
}


def _alphas_cumprod(config: SchedulerConfig) -> Float64[np.ndarray, " timesteps"]:
    count = config.num_train_timesteps
    if config.trained_betas is not None:
        betas = np.asarray(config.trained_betas, np.float64)
    elif config.beta_schedule in _BETAS:
        betas = _BETAS[config.beta_schedule](config.beta_start, config.beta_end, count)
    else:
        raise ValueError(
            f"scheduler config: beta_schedule is {shown(config.beta_schedule)}, expected one of {sorted(_BETAS)}; "
            "other schedules can be given as trained_betas"
        )
    if count < 2 or betas.shape != (count,) or not np.all((betas > 0) & (betas <= 1)):
        raise ValueError(
            f"scheduler config: expected num_train_timesteps={count} betas, at least two, all in (0, 1]; "
            f"got shape {betas.shape}; check num_train_timesteps, beta_start, beta_end and trained_betas"
        )
    alphas_cumprod = np.cumprod(1 - betas)
    if config.rescale_betas_zero_snr:
        # Algorithm 1 of arXiv 2305.08891: √ᾱ is shifted so that it ends at 0, then stretched to keep its beginning.
        signal = np.sqrt(alphas_cumprod)
        if signal[0] == signal[-1]:
            raise ValueError(
                "scheduler config: rescale_betas_zero_snr=True, but the betas add no noise that could be rescaled; "
                "check beta_start, beta_end and trained_betas"
            )
        alphas_cumprod = ((signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))) ** 2
    return alphas_cumprod


def _weigh(
    weights: Float64[np.ndarray, "2 timesteps"],
    first: Float[Array, "b h w c"],
    second: Float[Array, "b h w c"],
    t: Int[Array, " b"],
) -> Float32[Array, "b h w c"]:
    first_weight, second_weight = jnp.asarray(weights, jnp.float32)[:, t, None, None, None]
    return first_weight * first.astype(jnp.float32) + second_weight * second.astype(jnp.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The forward diffusion and its inverse.

    All methods broadcast one timestep per sample over NHWC latents and compute in float32, whatever the input dtype.
    A timestep outside 0 .. num_train_timesteps − 1 raises no error: JAX wraps or clamps it.

    Attributes:
        alphas_cumprod: ᾱ, the share of x0 in the variance of x_t. It decreases from almost 1 to almost or exactly 0.
        prediction_type: "v_prediction", "epsilon" or "sample".
    """

    alphas_cumprod: Float64[np.ndarray, " timesteps"]
    prediction_type: str

    @classmethod
    def from_config(cls, config: SchedulerConfig) -> "NoiseSchedule":
        """Builds the schedule that a diffusers scheduler_config.json describes.

        Raises:
            ValueError: the class, the beta schedule or the prediction type is not supported, or the betas do not make
                a schedule.
        """
        config.require_known_class()
        if config.prediction_type not in _PREDICTIONS:
            raise ValueError(
                f"scheduler config: prediction_type is {shown(config.prediction_type)}, expected one of "
                f"{sorted(_PREDICTIONS)}; name what the network was trained to predict"
            )
        return cls(_alphas_cumprod(config), config.prediction_type)

    def same_as(self, other: "NoiseSchedule") -> bool:
        """Whether a network that was trained on one can be used with the other."""
        alike = np.array_equal(self.alphas_cumprod, other.alphas_cumprod)
        return alike and self.prediction_type == other.prediction_type

    @property
    def num_train_timesteps(self) -> int:
        """The number of timesteps that the network was trained on; 1000 for Stable Diffusion."""
        return len(self.alphas_cumprod)

    @property
    def signal(self) -> Float64[np.ndarray, " timesteps"]:
        """√ᾱ, the weight of x0 in x_t."""
        return np.sqrt(self.alphas_cumprod)

    @property
    def sigma(self) -> Float64[np.ndarray, " timesteps"]:
        """√(1 − ᾱ), the weight of the noise in x_t."""
        return np.sqrt(1 - self.alphas_cumprod)

    def inversion(self, timesteps: Int[np.ndarray, " n"]) -> Float64[np.ndarray, "2 2 n"]:
        """Returns the weights that turn `(x_t, output)` into `(x0, noise)` at these timesteps.

        With `x0_weights, noise_weights = inversion(timesteps)`, x0 is `x0_weights[0] · x_t + x0_weights[1] · output`.

        Raises:
            ValueError: the pair does not determine x0 at one of the timesteps: the network predicts the noise, and x_t
                is pure noise.
        """
        signal, sigma = self.signal[timesteps], self.sigma[timesteps]
        of_x0, of_noise = _PREDICTIONS[self.prediction_type](signal, sigma)
        determinant = signal * of_noise - sigma * of_x0
        if not determinant.all():
            raise ValueError(
                f"{self.prediction_type} prediction cannot tell x0 at timestep {timesteps[determinant == 0]}, "
                "where zero terminal SNR leaves no signal; use v_prediction, or rescale_betas_zero_snr=False"
            )
        return np.array([[of_noise, -sigma], [-of_x0, signal]]) / determinant

    def add_noise(
        self, x0: Float[Array, "b h w c"], noise: Float[Array, "b h w c"], t: Int[Array, " b"]
    ) -> Float32[Array, "b h w c"]:
        """Returns x_t = √ᾱ · x0 + √(1 − ᾱ) · noise (arXiv 2006.11239, equation 4)."""
        return _weigh(np.stack([self.signal, self.sigma]), x0, noise, t)

    def velocity(
        self, x0: Float[Array, "b h w c"], noise: Float[Array, "b h w c"], t: Int[Array, " b"]
    ) -> Float32[Array, "b h w c"]:
        """Returns v = √ᾱ · noise − √(1 − ᾱ) · x0 (arXiv 2202.00512, appendix D)."""
        return _weigh(np.stack([-self.sigma, self.signal]), x0, noise, t)

    def target(
        self, x0: Float[Array, "b h w c"], noise: Float[Array, "b h w c"], t: Int[Array, " b"]
    ) -> Float32[Array, "b h w c"]:
        """Returns what the network should predict: the velocity, the noise or x0, by prediction type."""
        return _weigh(np.stack(_PREDICTIONS[self.prediction_type](self.signal, self.sigma)), x0, noise, t)

    def predict_x0(
        self, x_t: Float[Array, "b h w c"], output: Float[Array, "b h w c"], t: Int[Array, " b"]
    ) -> Float32[Array, "b h w c"]:
        """Returns the x0 that the network's output implies.

        Raises:
            ValueError: epsilon prediction with zero terminal SNR, where the last timestep would divide by zero.
        """
        return _weigh(self.inversion(np.arange(self.num_train_timesteps))[0], x_t, output, t)

    def predict_noise(
        self, x_t: Float[Array, "b h w c"], output: Float[Array, "b h w c"], t: Int[Array, " b"]
    ) -> Float32[Array, "b h w c"]:
        """Returns the noise that the network's output implies; raises as `predict_x0` does."""
        return _weigh(self.inversion(np.arange(self.num_train_timesteps))[1], x_t, output, t)
