"""From the spec as requested to the spec as run: each choice is made once, by one owner, with its reason.

A `Resolution` goes through four stages, always in this order:

==========  =====================================================================================================
wanted      as given by options, a file or Python; "auto", 0 and empty values are open
data        range, model, weights, input, augmentation, batch size: from the images, the weights and the teacher
pixels      mean and deviation, if the weights do not have them: from the decoded training images
speed       precision, micro-batches, compiling, CUDA graphs: from the device, and from the pace if it was measured
==========  =====================================================================================================

`facts` gathers what the rules need to know, `rules` are functions from facts to choices, and `Resolution` applies
them. Nothing else changes a run's spec, and nothing changes it after the last stage. `inputs` reads the preprocessing
contract from the result, and `checks` says what a user must know about it. Knows nothing of the training itself.
"""

from tellapart.training.resolution.choice import Choice
from tellapart.training.resolution.facts import (
    DataFacts,
    DeviceFacts,
    Facts,
    ModelFacts,
    PixelFacts,
    TeacherFacts,
)
from tellapart.training.resolution.owner import Resolution, Stage

__all__ = [
    "Choice",
    "DataFacts",
    "DeviceFacts",
    "Facts",
    "ModelFacts",
    "PixelFacts",
    "Resolution",
    "Stage",
    "TeacherFacts",
]
