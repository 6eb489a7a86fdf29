"""The engine: takes requests at any time, runs them together step by step, hands out tokens as they come.

One thread steps; others may submit and cancel meanwhile, and never wait for the device to do so.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypeVar

import torch

from ..checks import MAX_INT, number, switch
from ..forks import Forked
from ..sampling import BreakerTable, SamplingParams
from .logprobs import LogprobList, check_kept
from .request import Request
from .runner import Results, Runner
from .scheduler import Scheduler, Step
from .vocabulary import Vocabulary

T = TypeVar("T")
# Seconds for which a fork waits for the end of a step.
FORK_WAIT = 0.05
FORKED = "this process was forked: the request goes on in its parent"


@dataclass(eq=False, slots=True)
class Handle:
    """A request under way and what has come out of it.

    tokens: what was generated. finish_reason: None while it runs, then "stop", "length", "cancelled", "timeout" or
    "error" (`error` says which; refusal: of a request that never ran). Times are of time.perf_counter; started: when
    its first step began.
    listener: called from the stepping thread when something has come. watch: called there with every token; the request
    ends with "stop" at the first for which it returns true.
    """

    request: Request
    params: SamplingParams
    breakers: BreakerTable
    tokens: list[int] = field(default_factory=list)
    logprobs: LogprobList = field(default_factory=LogprobList)
    finish_reason: str | None = None
    error: str | None = None
    refusal: ValueError | None = None
    submitted: float = 0.0
    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    listener: Callable[[], None] | None = None
    watch: Callable[[int], bool] | None = None

    def tell(self) -> None:
        """Calls the listener; one that raises is not called again, and disturbs nobody."""
        try:
            if self.listener is not None:
                self.listener()
        except Exception as error:
            self.listener = None
            warnings.warn(f"a listener of the engine failed: {type(error).__name__}: {error}", stacklevel=2)

    @property
    def n_prompt(self) -> int:
        return len(self.request.prompt)

    @property
    def n_cached(self) -> int:
        return self.request.n_cached


class Engine(Forked):
    """Requests in, tokens out.

    overlap: starts a step before the results of the one before have reached the host. A request that ends then takes
    part in one step more, in vain.

    In a child process that os.fork has made it goes on without the requests that were under way: they are the parent's.
    What it cannot do there, after a fork in the middle of a step or with a GPU, raises RuntimeError.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner, vocabulary: Vocabulary, *, overlap: bool) -> None:
        self.scheduler, self.runner, self.vocabulary, self.overlap = scheduler, runner, vocabulary, overlap
        # Held while the scheduler is asked, never while the device works; and while a step is under way.
        self._lock, self._stepping = threading.Lock(), threading.Lock()
        self._handles: dict[Request, Handle] = {}
        self._open: set[Request] = set()  # those whose slot is open in the sampler
        self._in_flight: tuple[Step, Results] | None = None
        self._calls: deque[Callable[[], None]] = deque()
        self._leaving: deque[Request] = deque()
        self._closed: str | None = None
        self.n_steps = 0
        # A thread that steps by itself (thread.py) is woken when there is something to do.
        self.threaded = False
        self.wake: Callable[[], None] = lambda: None
        # In a child process: why nothing runs there.
        self.unusable: str | None = None
        self._forking = (False, False)
        self.watch_forks()

    def before_fork(self) -> None:
        """Between two steps, if that is soon."""
        self._forking = self._stepping.acquire(timeout=FORK_WAIT), self._lock.acquire(timeout=FORK_WAIT)

    def after_fork_in_parent(self) -> None:
        for held, lock in zip(self._forking, (self._stepping, self._lock), strict=True):
            if held:
                lock.release()

    def after_fork_in_child(self) -> None:
        if self.runner.output_device.type != "cpu":
            self.unusable = "a model on a GPU cannot be used in a forked process"
        elif not all(self._forking):
            self.unusable = "this process was forked while its model was at work in another thread"
        self._lock, self._stepping = threading.Lock(), threading.Lock()
        for waiting in (self._leaving, self._calls):
            waiting.clear()
        # Who listens to them is in the parent.
        handles = list(self._handles.values())
        for handle in handles:
            handle.listener = None
        if self.unusable is None:
            self._abort(FORKED)
        else:
            self._handles.clear()
            for handle in handles:
                handle.error, handle.finish_reason = FORKED, "error"

    def check(self) -> None:
        """RuntimeError in a child process where nothing can run."""
        if self.unusable is not None:
            raise RuntimeError(f"{self.unusable}; load it in the process that is to use it")

    # ---- from any thread ----

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams | None = None,
        *,
        priority: float = 0,
        timeout: float | None = None,
        cache_prompt: bool = True,
        listener: Callable[[], None] | None = None,
        watch: Callable[[int], bool] | None = None,
    ) -> Handle:
        """A new request. timeout: seconds from now after which it ends.

        One whose priority or timeout is a number that cannot be has failed when it comes back: whoever puts together
        many requests keeps those before it.
        ValueError for what cannot be run at all, QueueFull where too many are waiting, RuntimeError after `close`.
        """
        self.check()
        params = params or SamplingParams()
        self.scheduler.check_length(len(prompt))
        self.vocabulary.check(prompt, params)
        if params.n_probs:
            check_kept(params.n_probs, self.scheduler.most_tokens(len(prompt), params.max_tokens))
        cache_prompt = switch("cache_prompt", cache_prompt)
        refusal = _refusal(priority, timeout)
        if refusal is not None:
            refused = Request([], finish_reason="error")
            return Handle(refused, params, BreakerTable(), finish_reason="error", error=str(refusal), refusal=refusal)
        request = Request(
            prompt=list(prompt),
            max_tokens=params.max_tokens,
            priority=float(priority),
            deadline=float("inf") if timeout is None else self.scheduler.clock() + float(timeout),
            cache_prompt=cache_prompt,
            ignore_eos=params.ignore_eos,
        )
        # In the caller's thread, as it may take a moment that running streams should not wait for.
        breakers = self.vocabulary.breakers(params)
        handle = Handle(request, params, breakers, submitted=time.perf_counter(), listener=listener, watch=watch)
        with self._lock:
            if self._closed is not None:
                raise RuntimeError(self._closed)
            self.scheduler.submit(request)
            self._handles[request] = handle
        self.wake()
        return handle

    def cancel(self, handle: Handle) -> None:
        """Ends a request; no later step computes for it. Nothing happens if it has ended."""
        if handle.request.finish_reason is not None:
            return
        self._leaving.append(handle.request)
        # A step under way still reads its pages; then the next step begins with this.
        # Nothing is waited for: the garbage collector may call this, in the middle of anything.
        if self._stepping.acquire(blocking=False):
            try:
                self._cancel(blocking=False)
            finally:
                self._stepping.release()
        self.wake()

    def between_steps(self, function: Callable[[], T]) -> T:
        """Runs a function while no step is under way, in this thread or in the one that steps; what it returns.

        The function may use the cache and the scheduler's pool, and must not call the engine.
        """
        self.check()
        if not self.threaded:
            with self._stepping:
                self._collect()
                with self._lock:
                    return function()
        future: Future[T] = Future()

        def call() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._calls.append(call)
        self.wake()
        if not self.threaded:
            # The thread has ended since.
            with self._stepping:
                while self._call():
                    pass
        return future.result()

    def forget(self) -> None:
        """Drops all idle prefixes."""
        self.between_steps(self.scheduler.pool.forget)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._calls) or self._in_flight is not None or bool(self._handles)

    # ---- from the stepping thread ----

    def step(self) -> bool:
        """One step; false if there was nothing to do.

        What goes wrong on the device ends the requests of that step with an error, the others go on.
        """
        self.check()
        with self._stepping:
            try:
                return self._step()
            except BaseException as error:
                # Interrupted anywhere, or a mistake of ours: what was scheduled may not have been computed.
                self._abort(f"the engine has stopped: {type(error).__name__}: {error}")
                raise

    def _step(self) -> bool:
        called = self._call()
        self._cancel()
        with self._lock:
            step = self.scheduler.schedule()
            ended = self.scheduler.take_ended()
        # A slot that has become free may have been given away in this schedule: closed before it is opened again.
        self._finish(ended)
        launched = self._launch(step) if step is not None else None
        if not self.overlap:
            self._in_flight = launched
        collected = self._collect()
        if self.overlap:
            self._in_flight = launched
        with self._lock:
            ended_now = self.scheduler.take_ended()
        self._finish(ended_now)
        return bool(called or ended or launched or collected or ended_now)

    def _cancel(self, *, blocking: bool = True) -> None:
        """Cancels the requests that are to leave; not blocking: in a later step, if somebody asks the scheduler now."""
        if not self._lock.acquire(blocking=blocking):
            return
        try:
            while self._leaving:
                self.scheduler.cancel(self._leaving.popleft())
            ended = self.scheduler.take_ended()
        finally:
            self._lock.release()
        self._finish(ended)

    def _call(self) -> bool:
        """Does what was asked for between steps; false if nothing was."""
        if not self._calls:
            return False
        self._collect()
        with self._lock:
            self._calls.popleft()()
        return True

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.runner.device.type == "cuda":
            torch.cuda.synchronize(self.runner.device)

    def abort_all(self, reason: str) -> None:
        """Ends every request with an error."""
        with self._stepping:
            if self.unusable is None:
                self._abort(reason)

    def close(self, reason: str) -> None:
        """Ends every request with an error, and takes no further one."""
        with self._lock:
            self._closed = reason
        self.abort_all(reason)

    def _abort(self, reason: str) -> None:
        with self._lock:
            self.scheduler.abort_all(reason)
            self._in_flight = None
            ended = self.scheduler.take_ended()
        self._finish(ended)

    def _launch(self, step: Step) -> tuple[Step, Results] | None:
        self.n_steps += 1
        try:
            for row in step.rows:
                if row.request not in self._open:
                    self._begin(self._handles[row.request])
            return step, self.runner.launch(step)
        except Exception as error:
            self._fail(step, error)
            return None

    def _begin(self, handle: Handle) -> None:
        request, handle.started = handle.request, time.perf_counter()
        self.vocabulary.open(self.runner.sampler, request.slot, request.prompt, handle.params, handle.breakers)
        self._open.add(request)

    def _fail(self, step: Step, error: Exception) -> None:
        """Ends the requests of a step that went wrong."""
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        with self._lock:
            self.scheduler.fail(step, f"{type(error).__name__}: {error}")

    def _collect(self) -> bool:
        """Takes the results of the step under way; false if there is none."""
        if self._in_flight is None:
            return False
        step, results = self._in_flight
        self._in_flight = None
        try:
            sampled, logprobs = results.wait()
        except Exception as error:
            self._fail(step, error)
            return True
        with self._lock:
            accepted = self.scheduler.complete(step, sampled)
            self._open.difference_update(self.scheduler.take_restarted())
        places = {row.request: place for place, row in enumerate(results.rows)} if logprobs else {}
        now = time.perf_counter()
        for request, token in accepted:
            handle = self._handles[request]
            if not handle.tokens:
                handle.first_token = now
            handle.last_token = now
            if request in places and places[request] in logprobs:
                found, n = logprobs[places[request]], handle.params.n_probs
                handle.logprobs.append(token, found.logprob, found.top_ids[:n], found.top_logprobs[:n])
            stopped = handle.watch is not None and handle.watch(token)
            handle.tokens.append(token)
            if stopped:
                with self._lock:
                    self.scheduler.cancel(request, "stop")
            handle.tell()
        return True

    def _finish(self, ended: Sequence[Request]) -> None:
        """Closes what has ended and tells who waits for it."""
        for request in ended:
            if request in self._open:
                self._open.remove(request)
                self.runner.sampler.close(request.slot)
            handle = self._handles.pop(request)
            # The error first: another thread may read it as soon as there is a reason.
            handle.error = request.error
            handle.finish_reason = request.finish_reason
            handle.tell()


def _refusal(priority: Any, timeout: Any) -> ValueError | None:
    """What is impossible about a priority or a timeout; ValueError at once where it is no number at all."""
    given = {"priority": (priority, -MAX_INT)} | ({"timeout": (timeout, 0)} if timeout is not None else {})
    for name, (value, low) in given.items():
        try:
            number(name, value, low, MAX_INT)
        except ValueError as error:
            if isinstance(value, bool) or not isinstance(value, Real):
                raise
            return error
    return None
