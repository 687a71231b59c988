"""Replays a function of tensors as a CUDA graph. To launch 200 small kernels takes longer than to run them.

The function's kernels are recorded once. From then on, one launch runs them all. Needs a GPU.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KEPT = 16  # number of recordings that are kept, the youngest ones

Tensors = Sequence[Tensor | None]


class NotRecordable(RuntimeError):
    """The function can't be a CUDA graph: it waits for a tensor's value, or its Python code depends on one."""


@dataclass
class _Recording:
    """A graph, the tensors from which it reads its arguments, and the tensors into which it writes its results."""

    graph: torch.cuda.CUDAGraph
    arguments: Tensors
    results: Tensors


class Replay:
    """Calls a function of tensors, and replays its kernels from the second call with arguments of the same shapes on.

    A replay runs the kernels only. All else that the function does happens in its first two calls, and not again.
    So the function may change its tensors in place, but must not replace them, nor wait for a tensor's value.
    The results are valid until the next call.

    Args:
        work: the function; it takes tensors or None and returns a sequence of tensors or None.
    """

    def __init__(self, work: Callable[..., Tensors]) -> None:
        self.work = work
        self.stream = torch.cuda.Stream()
        self.pool: Any = None  # recordings share one memory pool, as only one of them is in use at a time
        self.recordings: dict[Hashable, _Recording | None] = {}

    def __call__(self, *given: Tensor | None, key: Hashable = None) -> Tensors:
        """The function's results.

        Args:
            given: the function's arguments.
            key: everything else on which the kernels depend, besides shapes, strides and dtypes of the arguments.

        Raises:
            NotRecordable: the function can't be recorded. After that this process may be unable to use the GPU.
        """
        alike = (key, *(None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype) for tensor in given))
        if alike not in self.recordings:
            results = self._run(given)
            self.recordings[alike] = None
            if len(self.recordings) > KEPT:
                del self.recordings[next(iter(self.recordings))]
            return results
        recording = self.recordings[alike] or self._record(given)
        self.recordings[alike] = recording
        for argument, tensor in zip(recording.arguments, given, strict=True):
            if argument is not None and tensor is not None:
                argument.copy_(tensor)
        recording.graph.replay()
        return recording.results

    def _run(self, given: Tensors) -> Tensors:
        """Calls the function without recording, but on the stream of the recordings.

        Libraries such as cuBLAS then have their workspace for that stream.
        """
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            results = self.work(*given)
        torch.cuda.current_stream().wait_stream(self.stream)
        return results

    def _record(self, given: Tensors) -> _Recording:
        arguments = [None if tensor is None else tensor.clone() for tensor in given]
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread, which reads images ahead, may allocate memory meanwhile
        recorded = torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local")
        try:
            with torch.cuda.stream(torch.cuda.current_stream()), recorded:  # restores the stream after an error, too
                results = self.work(*arguments)
        except RuntimeError as error:
            cause = error.__context__ or error  # if the work fails, the end of the recording fails after it
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            raise NotRecordable(str(cause).partition("\n")[0]) from error
        self.pool = graph.pool()
        return _Recording(graph, arguments, results)
