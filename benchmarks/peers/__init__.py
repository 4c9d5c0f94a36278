"""How fast are we beside other queues on PostgreSQL, on one server, in one run?"""

from collections.abc import Callable
from importlib.metadata import version

from benchmarks.figures import Figure
from benchmarks.peers import pick_up, rates
from benchmarks.peers.installation import Missing, node, python
from benchmarks.peers.peer import PEERS_IN_NODE, PEERS_IN_PYTHON, Contestant
from benchmarks.scale import SCALE
from benchmarks.server import Server


async def measure(server: Server, tell: Callable[[str], None]) -> list[Figure]:
    """Jobs a second and the pick-up by an idle worker, ours and those of every peer that can be installed."""
    tell(f"pgqueuetopia {version('pgqueuetopia')}: its defaults, but for how many jobs at a time")
    if SCALE != 1:
        tell(f"the sizes are scaled by {SCALE:g}: no figure to quote")
    contestants = await _contestants(tell)
    return [
        *await rates.measure(server, contestants, tell),
        *await pick_up.measure(server, contestants, tell),
    ]


async def _contestants(tell: Callable[[str], None]) -> list[Contestant]:
    """The peers that are here, or could be installed; the others are named with what is missing."""
    contestants = []
    for install, peers in ((node, PEERS_IN_NODE), (python, PEERS_IN_PYTHON)):
        try:
            place = await install(tell)
        except Missing as missing:
            tell(f"left out: {', '.join(peer.name for peer in peers)}; {missing}")
            continue
        for peer in peers:
            runner = place.runner(peer.runner, *peer.words)
            [said] = await runner.run("describe")
            tell(f"{peer.name} {said['version']} on {said['runtime']}: {said['settings']}; {peer.promise}")
            contestants.append(Contestant(peer, said["version"], runner))
    return contestants
