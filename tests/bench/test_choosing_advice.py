from __future__ import annotations

import numpy as np

from blemish.bench.choosing.advice import Advice, Contender, advised
from blemish.bench.choosing.evidence import Values


def row(value: float, spread: float, seed: int = 0) -> Values:
    """An AUROC with draws around it."""
    random = np.random.default_rng(seed)
    return np.concatenate([[value], value + spread * random.normal(size=500)])


def of(
    label: str,
    seconds: float,
    generated: Values | None,
    labelled: Values | None = None,
    *,
    flops: float | None = None,
    places: Values | None = None,
) -> Contender:
    """One whose arithmetic takes as long as any other's, unless it is given."""
    flops = 1e11 * seconds if flops is None else flops
    return Contender(
        label=label,
        seconds=seconds,
        flops=flops,
        generated=generated,
        labelled=labelled,
        places=places,
    )


def taken(*contenders: Contender, labelled: int = 0) -> Advice:
    found = advised(contenders, labelled)
    assert found is not None
    return found


def paired(best: Values, below: float, spread: float, seed: int = 3) -> Values:
    """An AUROC that lies `below` in the mean of the draws, more or less so in each."""
    random = np.random.default_rng(seed)
    drawn = best[1:] - below + spread * random.normal(size=len(best) - 1)
    return np.concatenate([[best[0] - below], drawn])


def test_of_what_is_probably_alike_the_one_with_the_least_arithmetic_is_taken() -> None:
    best = row(0.90, 0.03)
    for below, spread in ((0.004, 0.003), (0.012, 0.02)):  # little; better in 73 %
        slow, quick = of("slow", 0.05, best), of("quick", 0.01, paired(best, below, spread))
        found = taken(slow, quick, of("worse", 0.001, paired(best, 0.05, 0.01)))
        assert (found.chosen, found.alike) == (1, (0,))
        said = " ".join(found.reasons)
        assert "no difference between slow and quick that these pictures could show" in said
        assert "quick needs 1 GFLOP a picture, slow 5 GFLOP, and it is not fairly sure" in said
        assert "In this run" not in said
        assert "Where time counts" not in said


def test_what_is_fairly_surely_better_is_taken_and_the_cheaper_one_named() -> None:
    best = row(0.895, 0.03)
    less = paired(best, 0.012, 0.01)  # in 88 % of the draws, so that the interval holds 0
    found = taken(of("a", 0.45, best), of("b", 0.11, less), of("c", 0.1, paired(best, 0.05, 0.01)))
    assert (found.chosen, found.alike) == (0, (1,))
    assert found.reasons[-1] == (
        "Where time counts: b needs 11 GFLOP a picture, a 45 GFLOP, and lies 1.2 points below."
    )


def test_measured_times_do_not_change_the_advice() -> None:
    """patchcore and padim on the same few pictures, with the times of two runs on a busy machine:
    the first run named one, the second the other."""
    few = [row(0.704, 0.12), row(0.690, 0.12, seed=1)]
    runs = [
        taken(
            of("patchcore", times[0], few[0], flops=1.97e9),
            of("padim", times[1], few[1], flops=1.92e9),
        )
        for times in ((0.050, 0.032), (0.050, 0.066))
    ]
    assert [(one.chosen, one.alike) for one in runs] == [(0, (1,)), (0, (1,))]
    assert "They need about as much arithmetic; of these patchcore is best." in runs[1].reasons
    assert "padim was quicker, 32 ms a picture, and patchcore took 50 ms" in runs[0].reasons[-1]
    assert runs[0].reasons[:-1] == runs[1].reasons


def test_of_equal_ones_the_time_does_not_say_which_is_best() -> None:
    equal = row(0.9, 0.02)
    for times in ((0.01, 0.05), (0.05, 0.01)):
        one, other = (
            of(name, time, equal, flops=1e9) for name, time in zip("ab", times, strict=True)
        )
        assert taken(one, other).chosen == 0


def test_of_equally_cheap_ones_the_best_is_taken() -> None:
    better, worse = of("better", 0.0111, row(0.91, 0.02)), of("worse", 0.01, row(0.9, 0.02, seed=1))
    found = taken(worse, better, of("slow", 0.05, row(0.905, 0.02, seed=2)))
    assert (found.chosen, found.alike) == (1, (0, 2))
    assert "about as much arithmetic" in taken(worse, better).reasons[-1]


def test_what_is_best_and_needs_least_is_told_as_that() -> None:
    best = row(0.968, 0.02)
    found = taken(of("big", 0.0113, paired(best, 0.006, 0.005)), of("small", 0.0082, best))
    assert (found.chosen, found.alike) == (1, (0,))
    said = "small is best of these and needs least, 0.82 GFLOP a picture; big 1.13 GFLOP."
    assert found.reasons[-1] == said


def test_what_is_surely_better_is_taken_whatever_it_costs() -> None:
    same = row(0.80, 0.02)
    found = taken(of("slow", 0.05, same + 0.015), of("quick", 0.01, same))  # in every draw
    assert (found.chosen, found.alike) == (0, ())
    assert "By generated defects slow is best: 1.5 points of AUROC above quick" in found.reasons[0]
    assert "may be chance" not in found.reasons[0]
    assert "This is sure" in found.sure


def test_one_that_was_measured_alone_is_not_called_sure() -> None:
    assert "nothing that it could be compared with" in taken(of("only", 0.01, row(0.9, 0.02))).sure


def test_few_pictures_do_not_excuse_what_is_much_worse() -> None:
    found = taken(of("slow", 0.05, row(0.9, 0.2)), of("quick", 0.01, row(0.8, 0.2, seed=1)))
    assert found.chosen == 0
    assert "may be chance" in found.reasons[0]
    assert "not sure" in found.sure


def test_among_equals_what_shows_places_clearly_better_is_taken() -> None:
    equal, there = row(0.9, 0.02), row(0.8, 0.02)
    slow = of("slow", 0.05, equal, places=there)
    for below, spread, chosen in ((0.2, 0.02, 0), (0.04, 0.001, 1), (0.2, 0.2, 1)):
        found = taken(slow, of("quick", 0.01, equal, places=paired(there, below, spread)))
        assert found.chosen == chosen, below  # clearly and surely; surely; clearly
        assert found.by_places == (chosen == 0)
        assert bool(found.alike) == (chosen == 1)
        said = " ".join(found.reasons)
        told = "Of these slow shows best where the generated defects are: 20.0 points of AUPRO"
        assert (told in said) == (chosen == 0)
        assert ("and left out for it: quick." in said) == (chosen == 0)
        named = "Where it counts in which place a defect is: slow shows that better, by 4.0 points"
        assert (named in said) == (below == 0.04)
    assert "it needs 5 GFLOP a picture, quick 1 GFLOP" in " ".join(
        taken(slow, of("quick", 0.01, equal, places=there - 0.04)).reasons
    )


def test_places_do_not_make_up_for_defects_that_are_not_found() -> None:
    """Told even of what was left out before; and without them of all nothing is chosen by them."""
    worse = of("worse", 0.01, row(0.7, 0.005, seed=1), places=row(0.9, 0.01))
    best = of("best", 0.05, row(0.95, 0.005), places=row(0.6, 0.01))
    found = taken(worse, best)
    assert (found.chosen, found.by_places) == (1, False)
    assert "worse shows that better, by 30.0 points of AUPRO" in found.reasons[-1]
    equal = row(0.9, 0.02)
    some = taken(of("a", 0.05, equal, places=row(0.9, 0.01)), of("b", 0.01, equal))
    assert (some.chosen, some.by_places) == (1, False)


def test_labelled_defects_decide_where_there_are_five() -> None:
    good, bad = row(0.95, 0.005), row(0.80, 0.005, seed=1)
    one, other = of("one", 0.01, good, bad), of("other", 0.05, bad, good)
    assert taken(one, other, labelled=5).chosen == 1
    assert taken(one, other, labelled=5).by == "5 labelled defects"
    assert taken(one, other, labelled=4).chosen == 0
    assert taken(one, other, labelled=4).by == "generated defects"


def test_generated_defects_decide_among_what_labelled_ones_leave() -> None:
    equal = row(0.9, 0.02)
    better = of("better", 0.05, row(0.95, 0.005), equal)
    worse = of("worse", 0.01, row(0.80, 0.005, seed=1), equal)
    out = of("out", 0.001, row(0.99, 0.005), row(0.5, 0.005, seed=2))
    found = taken(better, worse, out, labelled=20)
    assert found.chosen == 0
    assert "Worse by 20 labelled defects: out." in found.reasons
    assert "generated defects" in found.by
    same = "no difference between better and worse that these pictures could show: they have the"
    assert f"{same} same AUROC, 90.0 %." in found.reasons[0]


def test_how_sure_it_is_is_told_of_the_step_that_decided() -> None:
    """Labelled defects that all find tell nothing; what was put aside by them is not compared."""
    equal, best = row(0.9, 0.0), row(0.80, 0.1)
    one = of("one", 0.05, best, equal)
    other = of("other", 0.01, paired(best, 0.04, 0.1), equal)
    out = of("out", 0.001, row(0.99, 0.001), row(0.5, 0.005, seed=2))
    found = taken(one, other, out, labelled=20)
    assert found.chosen == 0
    assert found.doubtful
    assert found.sure.startswith("This is not sure, as far as generated defects go: ")
    alone = taken(one, out, labelled=20)
    assert alone.sure.startswith("This is sure, as far as 20 labelled defects go: ")


def test_easy_defects_are_called_easy() -> None:
    found = taken(of("one", 0.05, np.ones(50)), of("other", 0.01, np.ones(50)))
    assert found.chosen == 1
    assert any("harder ones might tell" in sentence for sentence in found.reasons)


def test_without_anything_to_choose_by_there_is_no_advice() -> None:
    assert advised([], 0) is None
    assert advised([of("one", 0.01, None)], 0) is None


def test_a_single_candidate_needs_no_reason() -> None:
    found = taken(of("one", 0.01, row(0.9, 0.01)))
    assert (found.chosen, found.reasons) == (0, ())
