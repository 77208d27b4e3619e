"""Tags: nesting, every kind of function, baggage, threads; never a leak into the consumer or another context."""

from __future__ import annotations

import asyncio
import contextvars
import enum
import functools
import gc
import inspect
import logging
import multiprocessing
import random
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, context
from opentelemetry.baggage.propagation import W3CBaggagePropagator

from otel_tokens.context import TagsExecutor, configure, current_tags, tags
from otel_tokens.context.frames import Frame


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing may be logged (OpenTelemetry logs "Failed to detach context"), and nothing may be left over."""
    configure(())
    before = context.get_current()
    with caplog.at_level(logging.WARNING):
        yield
    configure(())
    assert dict(current_tags()) == {}
    assert baggage.get_all() == baggage.get_all(before)
    assert caplog.records == []


def now() -> dict[str, str]:
    return dict(current_tags())


# ---- nesting


def test_inner_tags_add_override_and_remove():
    with tags(session="s1", user=7):
        with tags(task="t", user=True, own_one="x"):
            assert now() == {"session": "s1", "user": "true", "task": "t", "own_one": "x"}
            with tags(session=None, missing=None):
                assert now() == {"user": "true", "task": "t", "own_one": "x"}
        assert now() == {"session": "s1", "user": "7"}
    assert now() == {}


def test_the_tags_in_force_cannot_be_changed_by_a_reader():
    with tags(session="s1"), pytest.raises(TypeError):
        current_tags()["session"] = "x"  # type: ignore[index]


def test_an_error_passes_and_ends_the_tags():
    with pytest.raises(KeyError), tags(session="s1"):
        raise KeyError
    assert now() == {}


def test_one_object_nests_in_itself_and_serves_threads_at_once():
    again = tags(session="s1")
    with again, tags(session="s2"), again:
        assert now() == {"session": "s1"}
    barrier = threading.Barrier(8)
    seen: list[dict[str, str]] = []

    def work(number: int) -> None:
        with tags(task=number):
            barrier.wait(300)
            for _ in range(50):
                with again:
                    seen.append(now())
            barrier.wait(300)
            seen.append(now())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    for number in range(8):
        assert seen.count({"session": "s1", "task": str(number)}) == 50
        assert seen.count({"task": str(number)}) == 1


def test_tags_left_out_of_order_take_only_their_own_away():
    configure(["session", "task"])
    first, second = tags(session="a", task="a", user="a"), tags(session="b", feature="f", user=None)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert now() == {"session": "b", "feature": "f"}
    assert dict(baggage.get_all()) == {"otel_tokens.session": "b"}
    second.__exit__(None, None, None)
    assert now() == {}
    assert dict(baggage.get_all()) == {}
    second.__exit__(None, None, None)  # once too often is harmless


LAYERS = st.lists(
    st.dictionaries(st.sampled_from(["session", "task", "user", "x.y"]), st.sampled_from(["1", "2", None])), max_size=7
)


@given(LAYERS, st.integers(0, 10_000))
def test_in_any_order_of_leaving_what_remains_is_in_force(layers: list[dict[str, str | None]], seed: int):
    order = random.Random(seed)
    configure(["session", "task"])
    remaining = [(tags(**layer), layer) for layer in layers]
    for one, _ in remaining:
        one.__enter__()
    while remaining:
        one, _ = remaining.pop(order.randrange(len(remaining)))
        one.__exit__(None, None, None)
        merged: dict[str, str | None] = {}
        for _, layer in remaining:
            merged.update(layer)
        expected = {name: value for name, value in merged.items() if value is not None}
        assert now() == expected
        assert dict(baggage.get_all()) == {
            f"otel_tokens.{name}": value for name, value in expected.items() if name in ("session", "task")
        }


@given(st.lists(st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["1", "2", None])), max_size=6))
def test_nested_tags_are_a_chain_of_updates(layers: list[dict[str, str | None]]):
    def descend(rest: list[dict[str, str | None]], expected: dict[str, str]) -> None:
        assert now() == expected
        if rest:
            below = {**expected, **rest[0]}
            with tags(**rest[0]):
                descend(rest[1:], {name: value for name, value in below.items() if value is not None})
            assert now() == expected

    descend(layers, {})


# ---- values


class Plan(str, enum.Enum):  # noqa: UP042 (the two enums differ in str())
    FREE = "free"


class Level(enum.IntEnum):
    HIGH = 3


def test_values_become_text():
    with tags(a="x", b=7, c=True, d=False, e=Plan.FREE, f=Level.HIGH, g="", h="ü" * 256, **{"team.name": "é"}):
        assert now() == {
            "a": "x", "b": "7", "c": "true", "d": "false", "e": "free", "f": "3", "g": "", "h": "ü" * 256,
            "team.name": "é",
        }  # fmt: skip
        assert all(type(value) is str for value in current_tags().values())


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"user": 1.5}, TypeError, "tag 'user' must be str, int or bool, not float"),
        ({"user": b"x"}, TypeError, "not bytes"),
        ({"user": ["x"]}, TypeError, "not list"),
        ({"user": "x" * 257}, ValueError, "tag 'user' has 257 characters; at most 256"),
        ({"user": "\ud800"}, ValueError, "lone surrogate"),
        ({"User": "x"}, ValueError, "'User' cannot name a tag"),
        ({"1st": "x"}, ValueError, "'1st' cannot name a tag"),
        ({"a-b": None}, ValueError, "'a-b' cannot name a tag"),
        ({"": "x"}, ValueError, "'' cannot name a tag"),
        ({"a" * 65: "x"}, ValueError, "cannot name a tag"),
        ({"a\n": "x"}, ValueError, "cannot name a tag"),
    ],
)
def test_what_is_no_tag_is_refused_at_once(wrong: Mapping[str, object], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        tags(**wrong)  # type: ignore[arg-type]


def test_repr_shows_what_was_given():
    assert repr(tags(session="s", user=None)) == "tags(session='s', user=None)"


# ---- as a decorator


def test_a_function_keeps_its_face_and_runs_under_its_tags():
    @tags(agent="planner")
    def plan(a: int, *, b: int = 2) -> tuple[int, dict[str, str]]:
        """Doc."""
        return a + b, now()

    assert plan.__name__ == "plan"
    assert plan.__doc__ == "Doc."
    assert list(inspect.signature(plan).parameters) == ["a", "b"]
    with tags(session="s"):
        assert plan(1, b=5) == (6, {"session": "s", "agent": "planner"})
    assert now() == {}


def test_a_recursive_function_and_a_method():
    class Agent:
        @tags(agent="a")
        def down(self, depth: int) -> dict[str, str]:
            with tags(depth=depth):
                return self.down(depth - 1) if depth else now()

        @staticmethod
        @tags(agent="s")
        def still() -> dict[str, str]:
            return now()

    assert Agent().down(3) == {"agent": "a", "depth": "0"}
    assert Agent.still() == {"agent": "s"}


@pytest.mark.parametrize("wrong", [int, staticmethod(len), classmethod(len), 5])
def test_what_is_no_function_cannot_be_decorated(wrong: object):
    with pytest.raises(TypeError, match="tags\\(\\) decorates functions"):
        tags(agent="x")(wrong)  # type: ignore[arg-type]


def test_a_coroutine_function():
    @tags(agent="a")
    async def work() -> dict[str, str]:
        await asyncio.sleep(0)
        return now()

    class Called:
        async def __call__(self) -> dict[str, str]:
            await asyncio.sleep(0)
            return now()

    async def main() -> None:
        assert inspect.iscoroutinefunction(work)
        assert await work() == {"agent": "a"}
        assert await tags(agent="b")(Called())() == {"agent": "b"}
        assert await tags(agent="c")(functools.partial(work))() == {"agent": "a"}
        async with tags(session="s"):
            assert now() == {"session": "s"}
        assert now() == {}

    asyncio.run(main())


def test_tasks_inherit_and_do_not_disturb_each_other():
    async def one(number: int) -> dict[str, str]:
        with tags(task=number):
            for _ in range(3):
                await asyncio.sleep(0)
                assert now() == {"session": "s", "task": str(number)}
        return now()

    async def main() -> None:
        with tags(session="s"):
            assert await asyncio.gather(*(one(number) for number in range(50))) == [{"session": "s"}] * 50

    asyncio.run(main())


def test_a_cancelled_coroutine_ends_its_tags():
    seen: list[dict[str, str]] = []

    @tags(agent="a")
    async def forever() -> None:
        await asyncio.Event().wait()

    async def outer() -> None:
        try:
            await forever()
        finally:
            seen.append(now())

    async def main() -> None:
        task = asyncio.create_task(outer())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    assert seen == [{}]


@tags(agent="gen")
def count(log: list[object]) -> Iterator[object]:
    log.append(now())
    with tags(step="inner"):
        try:
            got = yield now()
        except ValueError as error:
            got = error
        finally:
            log.append(now())
    log.append(got)
    try:
        yield now()
    finally:
        log.append(("end", now()))
    return "returned"


INNER = {"session": "s", "agent": "gen", "step": "inner"}
OUTER = {"session": "s", "agent": "gen"}


def test_a_generator_sees_its_tags_and_its_consumer_does_not():
    log: list[object] = []
    assert inspect.isgeneratorfunction(count)
    with tags(session="s"):
        body = count(log)
        assert log == []
        assert next(body) == INNER
        assert now() == {"session": "s"}
        with tags(consumer="c"):
            assert body.send("sent") == OUTER
            assert now() == {"session": "s", "consumer": "c"}
        with pytest.raises(StopIteration) as stop:
            next(body)
        assert stop.value.value == "returned"
    assert log == [OUTER, INNER, "sent", ("end", OUTER)]


def test_a_generator_takes_errors_and_is_closed_under_its_tags():
    log: list[object] = []
    thrown = ValueError("x")
    with tags(session="s"):
        body = count(log)
        next(body)
        assert body.throw(thrown) == OUTER
        body.close()
        assert now() == {"session": "s"}
    assert log == [OUTER, INNER, thrown, ("end", OUTER)]
    with pytest.raises(StopIteration):
        next(body)
    other = count([])
    next(other)
    with pytest.raises(KeyError):
        other.throw(KeyError())
    gc.collect()
    assert now() == {}


def test_a_generator_may_be_finished_in_another_context_and_thread():
    log: list[object] = []
    body = count(log)
    contextvars.copy_context().run(next, body)
    contextvars.copy_context().run(next, body)
    thread = threading.Thread(target=body.close)
    thread.start()
    thread.join(300)
    assert log[-1] == ("end", {"agent": "gen"})

    body = count(log)
    next(body)
    del body
    gc.collect()
    assert log[-1] == {"agent": "gen", "step": "inner"}
    assert now() == {}


def test_two_generators_in_turn():
    with tags(session="s"):
        first, second = count([]), tags(agent="other")(count)([])
        assert [next(first), next(second)] == [INNER, INNER]
        assert [next(first), next(second)] == [OUTER, OUTER]
        first.close()
        second.close()
        assert now() == {"session": "s"}


@tags(agent="agen")
async def acount(log: list[object]):
    log.append(now())
    try:
        with tags(step="inner"):
            await asyncio.sleep(0)
            got = yield now()
            log.append(got)
        await asyncio.sleep(0)
        yield now()
    finally:
        await asyncio.sleep(0)
        log.append(("end", now()))


def test_an_async_generator_sees_its_tags_and_its_consumer_does_not():
    async def main() -> None:
        log: list[object] = []
        assert inspect.isasyncgenfunction(acount)
        with tags(session="s"):
            seen = []
            async for item in acount(log):
                assert now() == {"session": "s"}
                seen.append(item)
            assert seen == [{"session": "s", "agent": "agen", "step": "inner"}, {"session": "s", "agent": "agen"}]
            body = acount(log)
            await body.__anext__()
            assert await body.asend("sent") == {"session": "s", "agent": "agen"}
            await body.aclose()
            with pytest.raises(KeyError):
                other = acount([])
                await other.__anext__()
                await other.athrow(KeyError())
            assert now() == {"session": "s"}
        assert log[-2:] == ["sent", ("end", {"session": "s", "agent": "agen"})]

    asyncio.run(main())


def test_an_abandoned_async_generator_is_closed_by_the_loop_without_a_word():
    log: list[object] = []

    async def main() -> None:
        configure(["agent"])
        async for _ in acount(log):
            break
        assert now() == {}
        assert dict(baggage.get_all()) == {}
        gc.collect()
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(main())
    assert log[-1] == ("end", {"agent": "agen"})


def test_an_async_generator_may_be_stepped_by_several_tasks():
    async def main() -> None:
        body = acount([])
        first = await asyncio.create_task(body.__anext__())
        second = await asyncio.create_task(body.__anext__())
        await asyncio.create_task(body.aclose())
        assert [first, second] == [{"agent": "agen", "step": "inner"}, {"agent": "agen"}]

    asyncio.run(main())


def test_tags_inside_an_undecorated_async_generator_that_is_dropped():
    async def body() -> object:
        with tags(session="inside"):
            yield 1
            yield 2

    async def main() -> None:
        async for _ in body():  # type: ignore[attr-defined]
            break
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(main())


def test_an_endless_chain_of_tasks_keeps_no_chain_of_tags():
    frames: list[int] = []

    async def main() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def next_one(number: int) -> None:
            with tags(task=number):
                assert now() == {"task": str(number)}
                if number < 3000:
                    loop.call_soon(next_one, number + 1)  # a copy of this context: it begins under these tags
                else:
                    frames.append(sum(type(thing) is Frame for thing in gc.get_objects()))
                    done.set()

        loop.call_soon(next_one, 0)
        await done.wait()

    asyncio.run(main())
    assert frames[-1] < 600


def test_deep_recursion_finds_its_way_back():
    @tags(agent="a")
    def down(number: int) -> dict[str, str]:
        if not number:
            return now()
        with tags(**{f"t{number % 3}": number}):
            down(number - 1)
            assert now()[f"t{number % 3}"] == str(number)
            return now()

    assert down(120) == {"agent": "a", "t0": "120"}

    def leave_open() -> None:
        with tags(session="s"):
            for _ in range(600):
                tags(task="left open").__enter__()
            assert now() == {"session": "s", "task": "left open"}
        assert now() == {"task": "left open"}

    contextvars.copy_context().run(leave_open)


# ---- W3C baggage


def inject() -> dict[str, str]:
    carrier: dict[str, str] = {}
    W3CBaggagePropagator().inject(carrier)
    return carrier


def test_no_tag_travels_unless_it_is_allowed_to():
    with tags(tenant="t", user="u"):
        assert inject() == {}
        configure(["tenant"])
        with tags(tenant="t2", user="u2"):
            assert inject() == {"baggage": "otel_tokens.tenant=t2"}
        assert inject() == {}


def test_a_tag_travels_to_another_service_and_counts_there():
    configure(["tenant", "feature"])
    with tags(tenant="ü, =;1", feature="f", user="u"):
        carrier = inject()
        with tags(feature=None):
            assert inject() == {"baggage": carrier["baggage"].split(",otel_tokens.feature")[0]}
            assert now() == {"tenant": "ü, =;1", "user": "u"}
        assert inject() == carrier
    assert inject() == {}

    token = context.attach(W3CBaggagePropagator().extract(carrier))
    try:
        assert now() == {"tenant": "ü, =;1", "feature": "f"}
        with tags(tenant="mine", feature=None):
            assert now() == {"tenant": "mine"}
        assert now() == {"tenant": "ü, =;1", "feature": "f"}
        configure(["feature"])
        assert now() == {"feature": "f"}
        configure([])
        assert now() == {}
    finally:
        context.detach(token)


def test_what_comes_in_is_bounded():
    many = [f"t{number}" for number in range(40)]
    configure([*many, "long", "odd", "lines"])
    entries = {f"otel_tokens.{name}": "v" for name in many}
    entries |= {"otel_tokens.other": "v", "tenant": "v", "otel_tokens.long": "x" * 257, "otel_tokens.lines": "a\nb"}
    incoming = context.get_current()
    for key, value in entries.items():
        incoming = baggage.set_baggage(key, value, incoming)
    incoming = baggage.set_baggage("otel_tokens.odd", 5, incoming)
    token = context.attach(incoming)
    try:
        assert now() == dict.fromkeys(many[:16], "v")
    finally:
        context.detach(token)


def test_the_rest_of_the_context_is_left_alone():
    configure(["tenant"])
    outer = context.attach(baggage.set_baggage("theirs", "1"))
    try:
        with tags(tenant="t"):
            inner = context.attach(context.set_value("key", "set inside"))
            assert dict(baggage.get_all()) == {"theirs": "1", "otel_tokens.tenant": "t"}
        assert context.get_value("key") == "set inside"
        assert dict(baggage.get_all()) == {"theirs": "1"}
        context.detach(inner)
        assert dict(baggage.get_all()) == {"theirs": "1", "otel_tokens.tenant": "t"}  # what they had attached then
    finally:
        context.detach(outer)


def test_baggage_of_a_generator_is_its_own():
    configure(["agent", "step"])
    body = count([])
    assert next(body) == {"agent": "gen", "step": "inner"}
    assert inject() == {}
    with tags(agent="consumer"):
        assert next(body) == {"agent": "gen"}
        assert inject() == {"baggage": "otel_tokens.agent=consumer"}
    body.close()


# ---- threads


def test_a_thread_inherits_only_what_it_is_given():
    seen: list[dict[str, str]] = []
    with tags(session="s"):
        carried = tags.carry(lambda: seen.append(now()))
        for target in (lambda: seen.append(now()), carried):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join(300)
    assert seen == [{}, {"session": "s"}]


def test_a_carried_function_runs_many_times_at_once():
    barrier = threading.Barrier(6)

    def work(number: int) -> dict[str, str]:
        with tags(task=number):
            barrier.wait(300)
            return now()

    with tags(session="s"):
        carried = tags.carry(work)
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(carried, range(6))) == [{"session": "s", "task": str(number)} for number in range(6)]
    assert carried.__name__ == "work"


def test_carry_refuses_a_coroutine_function():
    async def work() -> None: ...

    with pytest.raises(TypeError, match="asyncio tasks inherit"):
        tags.carry(work)


def test_an_executor_runs_each_call_under_the_tags_of_its_submitter():
    with tags.executor(ThreadPoolExecutor(4)) as pool:
        assert isinstance(pool, Executor)
        with tags(session="a"):
            first = pool.submit(now)
            mapped = pool.map(lambda _: now(), range(3))
        with tags(session="b"):
            second = pool.submit(now)
        assert [first.result(300), second.result(300), *mapped] == [{"session": name} for name in "abaaa"]
        assert pool.submit(now).result(300) == {}
        assert pool._max_workers == 4
    with pytest.raises(RuntimeError):
        pool.submit(now)


def test_an_executor_in_asyncio():
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with tags.executor(ThreadPoolExecutor(1)) as pool, tags(session="s"):
            assert await loop.run_in_executor(pool, now) == {"session": "s"}

    asyncio.run(main())


def test_a_process_pool_gets_the_tags():
    # The child can't import this file (importlib mode gives it no module name): it evaluates a text.
    look = "dict(__import__('otel_tokens.context', fromlist=['x']).current_tags())"
    with TagsExecutor(ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))) as pool:
        with tags(session="s"):
            future = pool.submit(eval, look)
            mapped = pool.map(eval, [look, f"{look} | {{'x': 1}}"], chunksize=2)
        assert [future.result(300), *mapped] == [{"session": "s"}, {"session": "s"}, {"session": "s", "x": 1}]
        assert pool.submit(eval, look).result(300) == {}
