"""A run outside of the process: files, state dicts, the state of torch.optim and of optax."""

from xopt.checkpoint._files import Restored as Restored
from xopt.checkpoint._files import latest as latest
from xopt.checkpoint._files import load_state as load_state
from xopt.checkpoint._files import save_state as save_state
from xopt.checkpoint._safetensors import CheckpointError as CheckpointError
