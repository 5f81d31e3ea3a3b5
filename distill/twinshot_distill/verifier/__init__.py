"""Whether a generated picture shows what was asked for: a frozen detector and the rules around it.

    verifier = Verifier.load()
    passed = verifier.check(images, scenes)
    quality = verifier.fidelity(images, scenes)

Independent of the generator: own composer, layouts, shadows, backgrounds and seeds.
"""

from twinshot_distill.verifier.detections import Detection
from twinshot_distill.verifier.scoring import STRICT, Verifier

__all__ = ["STRICT", "Detection", "Verifier"]
