"""A function of tensors as a CUDA graph: asking a GPU for 200 small pieces of work takes longer than doing them.

What the function asks for is recorded once, and from then on asked for in one go. Only a GPU runs this.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KEPT = 16  # recordings, the youngest ones

Tensors = Sequence[Tensor | None]


class NotRecordable(RuntimeError):
    """What the function does can't be a graph, as it waits for a number or looks at one."""


@dataclass
class _Recording:
    """A graph, the tensors that it reads its arguments from, and those that it leaves its results in."""

    graph: torch.cuda.CUDAGraph
    arguments: Tensors
    results: Tensors


class Replay:
    """Calls a function of tensors, and from the second call with like arguments on replays what it asked of the GPU.

    What the function does besides is done by the first two such calls only. It may change tensors that it holds, but
    must not put others in their place, nor wait for a number. Results stay until the next call.
    """

    def __init__(self, work: Callable[..., Tensors]) -> None:
        self.work = work
        self.stream = torch.cuda.Stream()
        self.pool: Any = None  # recordings share their memory: none is replayed while another's is read
        self.recordings: dict[Hashable, _Recording | None] = {}

    def __call__(self, *given: Tensor | None, key: Hashable = None) -> Tensors:
        """The function's results.

        Args:
            key: what the function depends on besides the tensors' shapes and layouts.

        Raises:
            NotRecordable: it does what can't be recorded. The process's GPU may be good for nothing more.
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
        """As it is; on the stream of the recordings, for which a library then has its workspace."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            results = self.work(*given)
        torch.cuda.current_stream().wait_stream(self.stream)
        return results

    def _record(self, given: Tensors) -> _Recording:
        arguments = [None if tensor is None else tensor.clone() for tensor in given]
        graph = torch.cuda.CUDAGraph()
        # thread_local: a thread that reads images ahead may take memory meanwhile
        recorded = torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local")
        try:
            with torch.cuda.stream(torch.cuda.current_stream()), recorded:  # which of itself would not leave its stream
                results = self.work(*arguments)
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of a recording fails after what failed in it
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            raise NotRecordable(str(cause).partition("\n")[0]) from error
        self.pool = graph.pool()
        return _Recording(graph, arguments, results)
