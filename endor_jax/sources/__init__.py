"""Other people's checkpoints, read one tensor at a time and written back."""

from endor_jax.sources.mapping import Place as Place
from endor_jax.sources.mapping import check_complete as check_complete
from endor_jax.sources.mapping import locate as locate
from endor_jax.sources.mapping import to_endor as to_endor
from endor_jax.sources.mapping import to_hf as to_hf
from endor_jax.sources.opening import open_source as open_source
from endor_jax.sources.safetensors_writer import write_safetensors as write_safetensors
from endor_jax.sources.source import Source as Source
from endor_jax.sources.source import TensorInfo as TensorInfo
