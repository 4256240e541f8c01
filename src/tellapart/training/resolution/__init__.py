"""From the spec that was wanted to the spec that is run: each choice once, by one owner, with its reason.

A `Resolution` goes through four stages, always in this order:

==========  =====================================================================================================
wanted      as options, a file or Python gave it; "auto", 0 and empty values are open
data        range, model, weights, input, augmentation, batch size: by the images, the weights and the teacher
pixels      mean and deviation, where no weights bring them: by the decoded training images
speed       precision, micro-batches, compiling, CUDA graphs: by the device, and by the pace where it was measured
==========  =====================================================================================================

`facts` gathers what the rules need to know, `rules` are functions from facts to choices, and `Resolution` applies
them. Nothing else changes a run's spec, and nothing changes it after the last stage. `inputs` reads the preprocessing
contract from the result, and `checks` tells what a user must know of it. Knows nothing of how training goes on.
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
