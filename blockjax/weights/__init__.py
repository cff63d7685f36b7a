"""Weights that travel: the tensors of Vision Transformers as other libraries name and shape them, in files."""

from blockjax.weights.files import UnusableWeights as UnusableWeights
from blockjax.weights.files import read_tensors as read_tensors
from blockjax.weights.names import Weights as Weights
from blockjax.weights.names import from_tensors as from_tensors
from blockjax.weights.names import to_tensors as to_tensors
from blockjax.weights.tables import FORMATS as FORMATS
