"""What it costs to make a job into JSON and back, checks included."""

import timeit
from collections.abc import Callable

import msgspec

from benchmarks.suite.measures.figures import Figures
from benchmarks.suite.stage import Stage
from eventflow import EventFlow, Job, JobContext

FUNCTION = f"{__name__}:in_process"
JOBS_PER_SECOND = 20_000


async def codec(stage: Stage, *, rounds: int = 50, calls: int = 5_000) -> Figures:
    """Microseconds for a job of four fields, ours and those of bare msgspec; and ours as a share of a core."""
    return await stage.call(FUNCTION, rounds=rounds, calls=calls)


class ShipOrder(Job):
    """What is encoded and decoded."""

    order_id: str
    customer: str
    lines: list[str]
    total_cents: int

    async def execute(self, context: JobContext) -> None:
        pass


async def in_process(address: str, *, rounds: int, calls: int) -> Figures:
    """The four ways take turns; of each the quickest round counts, which others have disturbed least."""
    job = ShipOrder(order_id="order-1", customer="customer-1", lines=["apples", "pears"], total_cents=995)
    flow = EventFlow("codec")
    flow.job(ShipOrder)
    definitions = flow.check().definitions
    encoder, decoder = msgspec.json.Encoder(), msgspec.json.Decoder(ShipOrder)
    name, version, data = definitions.encode(job)
    text = data.decode()  # as the driver hands it over
    ways: dict[str, Callable[[], object]] = {
        "encode_us": lambda: definitions.encode(job),
        "bare_encode_us": lambda: encoder.encode(job),
        "decode_us": lambda: definitions.decode(name, version, text),
        "bare_decode_us": lambda: decoder.decode(text),
    }
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for way, run in ways.items():
            seconds[way] = min(seconds[way], timeit.timeit(run, number=calls))
    figures = {way: 1e6 * least / calls for way, least in seconds.items()}
    ours = figures["encode_us"] + figures["decode_us"]
    return figures | {
        "codec_us": ours,
        "over_bare_us": ours - figures["bare_encode_us"] - figures["bare_decode_us"],
        "core_percent": 100 * JOBS_PER_SECOND * ours / 1e6,
    }
