"""Trade-offs: the certified front against brute force, what is proved, and the heuristics against it."""

import itertools
import sys

import numpy as np
import pytest

import jointopt as jo
from jointopt.errors import InputError, MissingExtraError
from jointopt.problems.declared import DeclaredProblem
from jointopt.problems.terms import total, worst
from jointopt.study.front import Front, Goal, compare_fronts, goals_of, nondominated, reference_of
from jointopt.study.pareto import pareto
from jointopt.study.pareto_search import warm_up


def ltfl(devices=2, **changes):
    return jo.problems.LTFL(jo.systems.ltfl(devices=devices, seed=3).with_(**changes))


def declared(system=None, cap=2.5):
    return DeclaredProblem(
        system or jo.systems.ltfl(devices=3, seed=0),
        variables=[jo.Variable("x", 0.0, 1.0)],
        model=lambda s, x: {"loss": (1.0 - x.x) ** 2, "cost": x.x + 0.1 * x.x**2, "offset": x.x - 0.5},
        objective=total("loss"),
        constraints={"cap": total("cost") <= cap},
    )


def brute(problem, goals, count=60_000, steps=13):
    """Values of feasible decisions: a grid for every device on its own axis, and random ones that crowd its edges."""
    rng = np.random.default_rng(0)
    shares = rng.uniform(size=(count, len(problem.variables), len(problem.system)))
    edge = rng.uniform(size=shares.shape) < 0.3
    shares = np.where(edge, np.rint(shares), shares)
    grid = np.array(list(itertools.product(np.linspace(0, 1, steps), repeat=len(problem.variables))))
    shares = np.concatenate([shares, np.repeat(grid[:, :, None], len(problem.system), axis=2)])
    decision = {}
    for i, v in enumerate(problem.variables):
        value = v.lower + shares[:, i] * (v.upper - v.lower)
        decision[v.name] = value if v.kind == "real" else np.rint(value)
    evaluation = problem.evaluate(jo.Decision(decision))
    values = np.stack([goal.values(evaluation) for goal in goals], axis=-1)
    return values[evaluation.feasible()]


def check(front, seen):
    """What must hold of a certified front, whatever the problem; `seen` are values of feasible decisions."""
    values = front.values
    assert len(front) and np.all(np.isfinite(values))
    assert len(nondominated(values)) == len(values)
    assert len(front.decisions) == len(front.results) == len(front.lower_bounds) == len(front.gaps) == len(front)
    own = front.objectives.index("objective")
    for row, bound, gap, result in zip(values, front.lower_bounds, front.gaps, front.results, strict=True):
        assert result.feasible and gap is not None and gap >= 0.0
        assert bound <= row[own] * (1.0 + 1e-12)
        assert result.value == pytest.approx(row[own], rel=1e-12)
        # no decision with the other objectives at most the point's is better than the bound
        others = np.delete(np.arange(values.shape[1]), own)
        rivals = seen[np.all(seen[:, others] <= row[others], axis=1), own]
        assert not rivals.size or rivals.min() >= bound * (1.0 - 1e-9)
    for decision, row in zip(front.decisions, values, strict=True):
        evaluation = front.problem.evaluate(decision)
        assert evaluation.feasible()
        again = [goal.values(evaluation) for goal in goals_of(front.problem, names(front))]
        np.testing.assert_allclose(again, row, rtol=1e-12)
    # nothing seen lies where nothing is said to be
    for row in front.excluded:
        assert not np.any(np.all(seen < row - 1e-9 * np.abs(np.where(np.isfinite(row), row, 0.0)), axis=1))
    assert np.all(seen >= front.ideal * (1.0 - 1e-9) - 1e-15)
    bound = front.hypervolume_bound()
    assert bound is None or front.hypervolume() <= bound * (1.0 + 1e-12)


def names(front):
    """The objectives as `pareto` takes them."""
    words = {"worst": worst, "total": total}
    split = [name.split(" ", 1) for name in front.objectives]
    return [words[parts[0]](parts[1]) if len(parts) == 2 else parts[0] for parts in split]


class TestExact:
    @pytest.mark.parametrize("objectives", [("objective", "delay"), ("energy", "gap"), ("gap", "delay", "energy")])
    def test_against_brute_force(self, objectives):
        problem = ltfl()
        front = pareto(problem, objectives, points=16)
        seen = brute(problem, goals_of(problem, objectives))
        assert len(seen) > 1000
        check(front, seen)
        assert max(front.gaps) <= 1e-6
        # what was tried at random lies behind the front
        volume = front.hypervolume_bound()
        best = seen[nondominated(seen)]
        tried = Front(problem, "random", front.objectives, front.units, best, ()).hypervolume(front.reference)
        assert tried <= volume * (1.0 + 1e-9)
        # thousands of random points can fill more of three objectives than sixteen best ones
        assert len(objectives) == 3 or tried < front.hypervolume()

    @pytest.mark.parametrize("quantity", ["delay", "energy"])
    def test_monotone_and_as_many_points_as_asked(self, quantity):
        front = pareto(ltfl(devices=6), ("objective", quantity), points=20)
        assert len(front) == 20
        assert np.all(np.diff(front.values[:, 1]) > 0.0)
        assert np.all(np.diff(front.values[:, 0]) < 0.0)

    def test_ends_are_the_single_objective_answers(self):
        problem = ltfl(devices=5)
        front = pareto(problem, points=8)
        assert front.values[-1, 0] == pytest.approx(jo.solve(problem).value, rel=1e-6)
        least = front.values[0, 1]
        assert not jo.solve(problem.limited({"delay": least * (1.0 - 1e-4)})).feasible
        assert least * (1.0 - 1e-4) < front.ideal[1] <= least

    def test_more_points_only_tighten(self):
        problem = ltfl(devices=4)
        few, many = pareto(problem, points=6), pareto(problem, points=40)
        at = few.reference
        assert few.hypervolume(at) <= many.hypervolume(at) * (1.0 + 1e-6)
        assert many.hypervolume(at) <= many.hypervolume_bound(at) <= few.hypervolume_bound(at) * (1.0 + 1e-6)

    def test_order_of_objectives_does_not_matter(self):
        problem = ltfl(devices=3)
        one, other = pareto(problem, ("gap", "delay"), points=9), pareto(problem, ("delay", "gap"), points=9)
        np.testing.assert_allclose(
            one.values[np.argsort(one.values[:, 0])], other.values[np.argsort(other.values[:, 1])][:, ::-1]
        )
        assert one.objectives == ("objective", "worst delay")
        assert one.units == ("", "s")

    def test_front_of_separate_decisions(self):
        # nothing but whole bits to choose: a front of a few points, found though fewer than asked for
        problem = ltfl(devices=1).restrict(power=0.05, pruning_ratio=0.9)
        front = pareto(problem, points=30)
        check(front, brute(problem, goals_of(problem, ("objective", "delay"))))
        bits = [float(d["bits"][0]) for d in front.decisions]
        assert len(front) == len(set(bits)) <= 30

    def test_feel_with_selection(self):
        problem = jo.problems.FEEL(jo.systems.feel(devices=2, seed=1))
        front = pareto(problem, points=4)
        assert len(front) == 4
        assert np.all(np.diff(front.values[:, 0]) < 0.0)
        assert front.worst_gap <= 1e-4
        assert front.hypervolume() <= front.hypervolume_bound()

    def test_coinference(self):
        problem = jo.problems.CoInference(jo.systems.coinference(devices=3, seed=0))
        front = pareto(problem, ("objective", "energy"), points=10)
        check(front, brute(problem, goals_of(problem, ("objective", "energy")), steps=5))

    def test_declared_worst(self):
        # identical devices: with cost at most c, x solves x + x^2/10 = c
        front = pareto(declared(), ("objective", "cost"), points=8)
        at = front.values[:, 1]
        x = 5.0 * (np.sqrt(1.0 + 0.4 * at) - 1.0)
        best = 3.0 * (1.0 - x) ** 2
        assert np.all(best <= front.values[:, 0] * (1.0 + 1e-6))
        assert np.all(best >= np.array(front.lower_bounds) * (1.0 - 1e-6))
        np.testing.assert_allclose(front.values[:-1, 0], best[:-1], rtol=1e-3)
        check(front, brute(declared(), goals_of(declared(), ("objective", "cost")), count=20_000))

    def test_declared_quantity_below_zero(self):
        front = pareto(declared(cap=10.0), ("objective", "offset"), points=6)
        assert front.values[0, 1] == pytest.approx(-0.5, abs=1e-3)
        assert front.values[-1, 1] == pytest.approx(0.5, abs=1e-3)
        assert front.ideal[1] <= -0.5

    def test_infeasible_is_an_answer(self):
        front = pareto(ltfl(delay_budget=1e-6))
        assert len(front) == 0
        assert front.infeasibility
        assert "delay" in front.infeasibility[0].binding
        assert "no decision" in front.message
        assert front.hypervolume([1.0, 1.0]) == 0.0
        assert not len(front.to_pandas())
        assert "0 points" in repr(front)

    def test_time_limit(self):
        front = pareto(ltfl(), time_limit=1e-9)
        assert "time limit" in front.message


class TestBadInput:
    @pytest.mark.parametrize(
        ("objectives", "word"),
        [
            (("objective", "dela"), "did you mean 'delay'"),
            (("objective",), "two or three"),
            ((), "two or three"),
            (("objective", "delay", "energy", "rate"), "two or three"),
            (("delay", "delay"), "twice"),
            (("objective", "gap"), "twice"),
            (("objective", 3), "expected a name"),
            ("delay", "two or three names"),
            (("delay", "energy"), "add 'objective'"),
            (("objective", "rate"), "cannot limit 'rate'"),
            (("objective", total("energy")), "cannot limit 'energy' of all devices together"),
            (("objective", total("enrgy")), "did you mean 'energy'"),
        ],
    )
    def test_objectives(self, objectives, word):
        with pytest.raises(InputError, match=word):
            pareto(ltfl(), objectives)

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"points": 0}, "points: 0"),
            ({"points": 1}, "points: 1"),
            ({"points": 2.5}, "points: 2.5"),
            ({"seed": -1}, "seed: -1"),
            ({"method": "nsga"}, "did you mean 'nsga2'"),
            ({"gpa": 1e-3}, "did you mean 'gap'"),
            ({"gap": 2.0}, "gap: 2.0"),
            ({"evaluations": 10}, "unknown option 'evaluations'"),
            ({"reference": [1.0]}, "2 finite numbers"),
            ({"reference": "far"}, "2 finite numbers"),
            ({"time_limit": 0}, "time_limit"),
            ({"method": "qlognehvi", "batch": 0}, "batch: 0"),
            ({"method": "qlognehvi", "variables": "flt"}, "did you mean 'flat'"),
            ({"method": "nsga2", "population": 1}, "population: 1"),
        ],
    )
    def test_options(self, options, word):
        if options.get("method") == "nsga2":
            pytest.importorskip("pymoo")
        with pytest.raises(InputError, match=word):
            pareto(ltfl(), **options)

    def test_no_certified_method(self):
        problem = declared()
        problem = DeclaredProblem(
            problem.system,
            variables=problem.variables,
            model=problem.model,
            objective=lambda q: q.loss.max(axis=-1) ** 2,
        )
        with pytest.raises(InputError, match="no certified method; use method='nsga2'"):
            pareto(problem, ("objective", "cost"))

    def test_missing_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pymoo.algorithms.moo.nsga2", None)
        with pytest.raises(MissingExtraError, match=r"jointopt\[moo\]"):
            pareto(ltfl(), method="nsga2")

    def test_no_problem(self):
        with pytest.raises(InputError, match="expected a Problem"):
            pareto("ltfl")


class TestLimited:
    @pytest.mark.parametrize("name", ["LTFL", "FEEL", "CoInference", "LayerwiseCoInference"])
    def test_budgets_never_rise(self, name):
        kind = getattr(jo.problems, name)
        problem = kind(kind.sample(devices=1 if name == "LayerwiseCoInference" else 3))
        own = problem.system.devices.delay_budget
        tight = problem.limited({"delay": 0.5 * float(own.min())})
        assert np.all(tight.system.devices.delay_budget == 0.5 * own.min())
        loose = problem.limited({"delay": 1e6, "energy": 1e6})
        np.testing.assert_array_equal(loose.system.devices.delay_budget, own)
        np.testing.assert_array_equal(loose.system.devices.energy_budget, problem.system.devices.energy_budget)
        assert problem.limited() is problem

    def test_keeps_settings(self):
        problem = ltfl().restrict(bits=8)
        assert problem.limited({"delay": 0.1}).settings() == problem.settings()

    @pytest.mark.parametrize(
        ("each", "all_", "word"),
        [
            ({"delay": 0.0}, None, "above 0"),
            ({"delay": float("nan")}, None, "finite"),
            ({"delay": "1 s"}, None, "finite"),
            ({"memory": 1.0}, None, "cannot limit 'memory'"),
            (None, {"energy": 1.0}, "all devices together"),
        ],
    )
    def test_refused(self, each, all_, word):
        with pytest.raises(InputError, match=word):
            ltfl().limited(each, total=all_)

    def test_declared(self):
        problem = declared()
        tight = problem.limited({"cost": 0.3}, total={"loss": 2.0})
        evaluation = tight.evaluate(jo.Decision(x=np.array([0.5, 0.1, 0.1])))
        broken = {name: short for name, _, short in evaluation.broken()}
        assert broken["each cost limited"] == pytest.approx(0.525 - 0.3)
        assert "total loss limited" not in broken
        assert problem.evaluate(jo.Decision(x=np.array([0.5, 0.1, 0.1]))).feasible()
        # the tighter of two limits holds
        assert tight.limited({"cost": 0.9}).limits["each cost limited"].max() == 0.3
        with pytest.raises(InputError, match="no 'costs'; did you mean 'cost'"):
            problem.limited({"costs": 1.0})
        with pytest.raises(InputError, match="finite"):
            problem.limited({"cost": np.inf})


class TestHeuristics:
    @pytest.mark.slow
    @pytest.mark.parametrize("variables", ["flat", "search", "policy"])
    def test_qlognehvi_stays_behind_what_is_proved(self, variables):
        problem = ltfl(devices=2)
        proved = pareto(problem, points=20)
        front = pareto(problem, method="qlognehvi", evaluations=11, initial=9, variables=variables, points=8, seed=1)
        assert front.n_evaluations == 11
        assert len(front) <= 8
        self.behind(front, proved)
        assert front.worst_gap is None
        assert front.hypervolume_bound() is None

    def test_nsga2_stays_behind_what_is_proved(self):
        pytest.importorskip("pymoo")
        problem = ltfl(devices=2)
        proved = pareto(problem, ("gap", "delay", "energy"), points=20)
        front = pareto(problem, ("gap", "delay", "energy"), method="nsga2", evaluations=2000, points=30, seed=1)
        assert 0 < len(front) <= 30
        self.behind(front, proved)
        for decision in front.decisions:
            assert np.all(decision["bits"] == np.rint(decision["bits"]))

    @staticmethod
    def behind(front, proved):
        assert front.hypervolume(proved.reference) <= proved.hypervolume_bound() * (1.0 + 1e-6)
        for row in proved.excluded:
            assert not np.any(np.all(front.values < row * (1.0 - 1e-6), axis=1))
        for decision, row in zip(front.decisions, front.values, strict=True):
            evaluation = front.problem.evaluate(decision)
            assert evaluation.feasible()
            assert float(evaluation.objective) == pytest.approx(row[0], rel=1e-12)

    def test_objectives_that_need_no_limit(self):
        pytest.importorskip("pymoo")
        front = pareto(ltfl(devices=2), (total("energy"), "delay"), method="nsga2", evaluations=400)
        assert front.objectives == ("total energy", "worst delay")
        assert len(front)

    @pytest.mark.parametrize(
        "options",
        [
            {"method": "nsga2", "evaluations": 300},
            pytest.param({"method": "qlognehvi", "evaluations": 10, "batch": 2}, marks=pytest.mark.slow),
        ],
    )
    def test_one_seed_one_front(self, options):
        pytest.importorskip("pymoo")
        problem = ltfl(devices=2)
        state = np.random.get_state()[1].copy()  # noqa: NPY002
        one, again, other = (pareto(problem, seed=s, **options) for s in (0, 0, 5))
        np.testing.assert_array_equal(one.values, again.values)
        assert not np.array_equal(one.values, other.values)
        np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002

    @pytest.mark.slow
    def test_without_a_compiler(self, monkeypatch):
        from botorch.acquisition.multi_objective import logei

        monkeypatch.setattr(logei, "_load_attempted", True)
        monkeypatch.setattr(logei, "_C", None)
        assert warm_up() == 0.0
        front = pareto(ltfl(), method="qlognehvi", evaluations=9, variables="policy")
        assert "no C++ compiler" in front.message

    def test_infeasible(self):
        pytest.importorskip("pymoo")
        front = pareto(ltfl(delay_budget=1e-6), method="nsga2", evaluations=100)
        assert len(front) == 0
        assert "no feasible decision" in front.message


class TestFront:
    def test_hypervolume_of_known_points(self):
        values = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [9.0, 0.5]])
        front = Front(None, "exact", ("objective", "worst delay"), ("", "s"), values, ())
        assert front.hypervolume([4.0, 4.0]) == pytest.approx(6.0)
        with pytest.raises(InputError, match="2 finite numbers"):
            front.hypervolume([1.0, np.nan])

    def test_bound_of_known_boxes(self):
        front = Front(
            None,
            "exact",
            ("objective", "worst delay"),
            ("", "s"),
            np.array([[1.0, 3.0], [3.0, 1.0]]),
            (),
            excluded=np.array([[1.0, 3.0], [2.5, 2.0], [np.inf, 1.0], [0.5, np.inf]]),
            ideal=np.array([0.5, 1.0]),
            reference=np.array([4.0, 4.0]),
        )
        # of 3.5 x 3: (0.5 to 1) x (1 to 3), and (1 to 2.5) x (1 to 2) are ruled out
        assert front.hypervolume_bound() == pytest.approx(10.5 - 1.0 - 1.5)

    @pytest.mark.parametrize("size", [2, 3])
    def test_nondominated_against_pairs(self, size):
        rng = np.random.default_rng(size)
        values = rng.integers(0, 6, size=(60, size)).astype(float)
        values[rng.uniform(size=values.shape) < 0.05] = np.inf
        kept = {tuple(values[i]) for i in nondominated(values)}
        want = {tuple(a) for a in values if not any(np.all(b <= a) and np.any(b < a) for b in values)}
        assert kept == want
        assert len(nondominated(values)) == len(kept)
        assert nondominated(np.empty((0, size))).size == 0

    def test_reference_of_one_point(self):
        assert np.all(reference_of(np.array([[2.0, 0.0]])) > [2.0, 0.0])

    def test_saved_and_read(self, tmp_path):
        front = pareto(ltfl(), points=5)
        read = Front.load(front.save(tmp_path / "front.json"))
        np.testing.assert_array_equal(read.values, front.values)
        assert read.decisions == front.decisions
        assert read.gaps == front.gaps
        assert read.objectives == front.objectives
        assert read.hypervolume() == front.hypervolume()
        assert read.hypervolume_bound() == front.hypervolume_bound()
        with pytest.raises(InputError, match="no saved front"):
            Front.load(jo.solve(ltfl()).save(tmp_path / "result.json"))

    def test_table(self):
        table = pareto(ltfl(), points=5).to_pandas()
        assert list(table.columns) == ["objective", "worst delay", "lower_bound", "gap"]
        assert len(table) == 5
        assert table["gap"].max() <= 1e-6

    def test_compared_on_one_reference(self):
        problem = ltfl()
        few, many = pareto(problem, points=4), pareto(problem, points=16)
        table = compare_fronts({"few": few, "many": many})
        assert table.attrs["reference"] == few.reference.tolist()
        assert table.loc["few", "hypervolume"] < table.loc["many", "hypervolume"]
        assert table.loc["many", "share"] <= 1.0
        with pytest.raises(InputError, match="expected fronts"):
            compare_fronts({})
        with pytest.raises(InputError, match="'b' is about"):
            compare_fronts({"a": few, "b": pareto(problem, ("gap", "energy"), points=3)})

    def test_goal_names(self):
        problem = ltfl()
        assert goals_of(problem, ("gap", "delay")) == (Goal(), Goal("delay", "worst"))
        assert goals_of(problem, ("bound", total("delay"))) == (Goal("bound", "value"), Goal("delay", "total"))
        assert goals_of(declared(), (total("loss"), "cost")) == (Goal(), Goal("cost", "worst"))
