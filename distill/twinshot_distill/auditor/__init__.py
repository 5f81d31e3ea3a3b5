"""A second opinion on whether a picture shows what was asked for, built independently of the verifier.

    auditor = Auditor.load()
    passed = auditor.check(images, scenes)

Another network (it labels every cell of the picture instead of finding centres), another way from its output
to objects, other training pictures (the generator's own composer, with its own spoiling) and another seed.
Only GenEval's rules are shared, since they are the definition of the tasks. Where both agree, a score does
not rest on the faults of one network.
"""

from twinshot_distill.auditor.judge import STRICT, Auditor

__all__ = ["STRICT", "Auditor"]
