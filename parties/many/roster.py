"""The names of session/parties.py as they were."""

from ..session.parties import DEALER, LEADER, NAMES, numbered
from ..session.parties import Parties as Roster
from ..session.parties import PartiesError as RosterError

__all__ = ["DEALER", "LEADER", "NAMES", "Roster", "RosterError", "numbered"]
