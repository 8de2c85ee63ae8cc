"""How arms do with some of the dates of series: a table, where runs hold such figures."""

from collections.abc import Iterator

from ...publishing.tables import Table
from .cells import percent
from .experiments import Experiment, at


_NOTE = (
    "mIoU in %. Average and Last-1 over the combinations of the modalities and all shares of their dates; after them "
    "the mean over the combinations with each share. What is drawn of a share is the same for all arms and seeds."
)


def date_tables(experiment: Experiment) -> Iterator[Table]:
    """Yield the scores from shares of the dates; nothing without such figures."""
    arms = experiment.holding("dates")
    if arms is None:
        return
    shares = list(dict.fromkeys(name for run in arms.all_runs for name in run["dates"]["conditions"]))
    figures = [at("dates", "average_miou"), at("dates", "last1_miou")]
    figures += [at("dates", "conditions", name, "average_miou") for name in shares]
    lines = [[f"`{arm}`", *(percent(arms.spread(arm, figure)) for figure in figures)] for arm in arms.runs]
    yield Table("dates", "With some of the dates", ["arm", "Average", "Last-1", *shares], lines, _NOTE)
