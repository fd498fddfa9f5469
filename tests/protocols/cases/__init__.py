"""Small programs that every protocol must run like `clear`: each operation alone, and the ways operations meet.

Found by scanning this folder.
"""

from blindformer.protocols.scanning import modules

from ..programs import CASES

__all__ = ["CASES"]

for _ in modules(__name__):
    pass  # a module registers its programs as it is imported
