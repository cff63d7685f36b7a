"""What a compiled train step needs of device memory, on any accelerator, without having it."""

from blockjax.memory.jobs import profile
from blockjax.memory.profiles import MIB, DoesNotFit, MemoryProfile, profile_compiled

__all__ = ["MIB", "DoesNotFit", "MemoryProfile", "profile", "profile_compiled"]
