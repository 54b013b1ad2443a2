"""Answers by vLLM, in an environment of its own: another Python, whose packages need not agree with the trainer's.

Every rank has one engine beside it, a Ray actor under the interpreter that the recipe names. It starts with no weights;
each update sends it the trainer's. The trainer compares log-probabilities after every update as with its own sampler.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cluster.errors import RecipeError, RunError
from cluster.settings import Settings
from trainers.architecture import positions
from trainers.rollout import Answer, Sampling, check_fit, end_tokens

STARTING = 600.0
"""Seconds that an engine may take to start: on a GPU it compiles kernels."""


class VLLM(Settings):
    """Where vLLM is and what it may use."""

    python: str = Field(description="interpreter of an environment with vllm, and with the ray release used here")
    cache_gib: float = Field(4.0, gt=0, description="memory of each engine's KV cache, in GiB")
    eager: bool = Field(False, description="no compiled kernels: starts sooner, samples more slowly")
    environment: dict[str, str] = Field(default_factory=dict, description="environment variables of the engine")


class Server:
    """One engine. Lives in vLLM's environment, where nothing of this package is imported: it is sent by value."""

    def __init__(self, folder: str, dtype: str, mode: str, cache_bytes: int, eager: bool):
        from vllm import LLM

        self.llm = LLM(
            folder,
            load_format="dummy",
            dtype=dtype,
            enforce_eager=eager,
            logprobs_mode=mode,
            kv_cache_memory_bytes=cache_bytes,
            gpu_memory_utilization=0.01,  # not used beside a fixed cache, but checked: the trainer's share is taken
            max_num_seqs=256,
            disable_log_stats=True,
        )

    def pid(self) -> int:
        """Of the engine's process."""
        import os

        return os.getpid()

    def take(self, weights: dict[str, tuple[str, list[int], Any]]) -> None:
        """New weights: name → (dtype, shape, bytes). What was read under the old ones is forgotten."""
        import torch

        def whole() -> Any:
            for name, (dtype, shape, raw) in weights.items():
                # Ray's arrays are read-only views of shared memory
                yield name, torch.from_numpy(raw.copy()).view(getattr(torch, dtype)).view(shape)

        def pack(model: Any) -> None:
            for module in model.modules():
                if hasattr(module, "cpu_linear") and module.weight.numel():
                    module.quant_method.process_weights_after_loading(module)

        # not the model's own load_weights: engines pack weights for their kernels, which this undoes and does again …
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": whole()})
        # … but for CPUs it leaves a head that is tied to the embedding with the packed copy of the old one
        self.llm.apply_model(pack)
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept cached prefixes of the old weights")

    def generate(
        self, asked: list[tuple[list[int], int]], seeds: list[int], how: dict[str, Any]
    ) -> list[tuple[list[int], list[float], bool]]:
        """(tokens, log-probabilities, finished) per prompt and longest answer."""
        from vllm import SamplingParams

        params = [SamplingParams(seed=seed, max_tokens=n, **how) for (_, n), seed in zip(asked, seeds, strict=True)]
        out = self.llm.generate([{"prompt_token_ids": ids} for ids, _ in asked], params, use_tqdm=False)
        found = []
        for answer in (request.outputs[0] for request in out):
            tokens = list(answer.token_ids)
            log_probs = [step[token].logprob for token, step in zip(tokens, answer.logprobs, strict=True)]
            found.append((tokens, log_probs, answer.finish_reason == "stop"))
        return found


class VLLMSampler:
    """`generate` by vLLM, with weights taken over by `take` as in `trainers.rollout.Sampler`."""

    def __init__(
        self, config: Any, tokenizer: Any, settings: VLLM, sampling: Sampling, *, dtype: torch.dtype, gpu: str
    ):
        """`gpu` is the CUDA_VISIBLE_DEVICES of the rank, "" on CPU. Raises RecipeError for what vLLM cannot tell."""
        self.mode = log_prob_mode(sampling)
        if not Path(settings.python).is_file():
            raise RecipeError(f"objective.vllm.python: {settings.python} is no file; name an interpreter that has vllm")
        self.config, self.settings, self.gpu = config, settings, gpu
        self.dtype = str(dtype).removeprefix("torch.")
        self.ends = end_tokens(config, tokenizer)
        self.starts = 0
        """How many engines have been started: more than one when one was lost."""
        self._folder = tempfile.TemporaryDirectory(prefix="corpusmill-vllm-")
        config.save_pretrained(self._folder.name)
        tokenizer.save_pretrained(self._folder.name)
        self._server: Any = None
        self._weights: Any = None

    def take(self, weights: dict[str, Tensor]) -> None:
        """Send these weights to the engine. Names as in transformers, tied ones once."""
        import ray

        packed = {}
        for name, value in weights.items():
            flat = value.detach().to("cpu").contiguous().reshape(-1)
            packed[name] = (str(value.dtype).removeprefix("torch."), list(value.shape), flat.view(torch.uint8).numpy())
        self._weights = ray.put(packed)
        if self._server is not None:
            self._call("take", self._weights)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        numbers: Sequence[int] | None = None,
        most: Sequence[int] | None = None,
    ) -> list[Answer]:
        """See `Rollouts.generate`. An answer's draws depend on the seed, the prompt's number and the sample alone."""
        if not prompts:
            return []
        limits = list(most) if most is not None else [sampling.max_tokens] * len(prompts)
        check_fit(prompts, limits, positions(self.config))
        if sampling.temperature and log_prob_mode(sampling) != self.mode:
            raise RecipeError("vllm: an engine cannot change between cut and whole distributions; start another")
        how: dict[str, Any] = {
            "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or -1,
            "stop": list(sampling.stop), "logprobs": 0, "ignore_eos": True,
            "stop_token_ids": sorted(self.ends), "include_stop_str_in_output": True,
        }  # fmt: skip
        names = list(numbers) if numbers is not None else list(range(len(prompts)))
        requests = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(sampling.samples)]
        seeds = [seed_of(sampling.seed, names[prompt], sample) for prompt, sample in requests]
        asked = [(list(prompts[prompt]), limits[prompt]) for prompt, _ in requests]
        found = self._call("generate", asked, seeds, how)
        return [Answer(p, s, *answer) for (p, s), answer in zip(requests, found, strict=True)]

    def _call(self, method: str, *arguments: Any) -> Any:
        """Ask the engine. One that has died is replaced, is sent the weights again, and is asked the same."""
        import ray

        deaths = 0
        while True:
            try:
                if self._server is None:
                    self._start()
                return ray.get(getattr(self._server, method).remote(*arguments))
            except ray.exceptions.RayActorError as error:
                self.close()
                deaths += 1
                if deaths == 3:
                    raise RunError(
                        f"vLLM under {self.settings.python} does not stay alive: {error}; run that interpreter with "
                        "`-c 'import vllm'`, and lower objective.vllm.cache_gib where memory is short"
                    ) from error
            except ray.exceptions.RuntimeEnvSetupError as error:
                raise RunError(f"objective.vllm.python: {self.settings.python} does not start: {error}") from error
            except ray.exceptions.RayTaskError as error:
                raise RunError(f"vLLM failed in {method}: {error}") from error

    def _start(self) -> None:
        import ray

        if self._weights is None:
            raise RunError("vLLM was asked before it was given weights; call take first")
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        plain = {
            "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": self.gpu, "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
        }  # fmt: skip
        if not self.gpu:
            plain |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # else engines of one machine would share a core
        actor: Any = ray.remote(Server)
        node = ray.get_runtime_context().get_node_id()
        where = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        self._server = actor.options(
            num_cpus=0, num_gpus=0, scheduling_strategy=where, max_restarts=0,
            runtime_env={"py_executable": self.settings.python, "env_vars": plain | self.settings.environment},
        ).remote(self._folder.name, self.dtype, self.mode, int(self.settings.cache_gib * 2**30), self.settings.eager)  # fmt: skip # noqa: E501
        self.starts += 1
        ray.get(self._server.take.remote(self._weights), timeout=STARTING)

    def close(self) -> None:
        """End the engine."""
        if self._server is not None:
            import ray

            ray.kill(self._server, no_restart=True)
            self._server = None


def log_prob_mode(sampling: Sampling) -> str:
    """What vLLM must report so that it is `Answer.log_probs`: after the temperature, before cuts.

    Raises RecipeError where it can tell neither. Without cuts it is what vLLM calls processed, at temperature 1 raw.
    """
    if sampling.top_k == 0 and sampling.top_p == 1.0:
        return "processed_logprobs"
    if sampling.temperature in (0.0, 1.0):
        return "raw_logprobs"
    raise RecipeError(
        f"objective.sampling: vLLM tells log-probabilities before the temperature or after top_k and top_p; for "
        f"temperature: {sampling.temperature:g} leave the cuts out, or for the cuts take temperature: 1"
    )


def seed_of(seed: int, number: int, sample: int) -> int:
    """A request's own seed, int in [0, 2^63), from the run's seed, the prompt's number and the sample."""
    return int(np.random.SeedSequence([seed, number, sample]).generate_state(1, np.uint64)[0] >> np.uint64(1))
