"""vLLM serves a model that was trained and exported here."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from agent.assignment import TrainAssignment
from agent.blobs import BlobCache
from agent.engines.base import ENVIRONMENTS
from agent.training.export import export_checkpoint
from agent.training.run import train

GENERATE = """
import json, sys
import vllm
llm = vllm.LLM(model=sys.argv[1], dtype="float32", enforce_eager=True, max_num_seqs=4)
prompts = [{"prompt_token_ids": ids} for ids in json.loads(sys.argv[2])]
sampling = vllm.SamplingParams(temperature=0, ignore_eos=True, max_tokens=16)
outputs = llm.generate(prompts, sampling, use_tqdm=False)
print("TOKENS", json.dumps([list(output.outputs[0].token_ids) for output in outputs]))
"""


@pytest.mark.slow
@pytest.mark.vllm
def test_vllm_generates_the_trained_models_greedy_tokens(
    vllm_python: str, assignment: TrainAssignment, blobs: BlobCache, tmp_path: Path
) -> None:
    shape = assignment.architecture.model_copy(update={"head_dim": 32})  # the smallest that its CPU kernels know
    kept: list[Any] = []
    *_, observation = train(
        assignment.model_copy(update={"architecture": shape}),
        blobs=blobs,
        checkpoint_directory=tmp_path / "checkpoints",
        agent="tester",
        device="cpu",
        on_finished=lambda model, _: kept.append(model),
    )
    export_checkpoint(kept[0], observation, tmp_path / "model", blobs=blobs)
    prompts = torch.randint(1, 300, (4, 12), generator=torch.Generator().manual_seed(3))
    tokens = prompts
    for _ in range(16):
        with torch.no_grad():
            tokens = torch.cat([tokens, kept[0](tokens)[:, -1:].argmax(dim=-1)], dim=1)
    done = subprocess.run(
        [vllm_python, "-c", GENERATE, str(tmp_path / "model"), json.dumps(prompts.tolist())],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **ENVIRONMENTS["vllm"], "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    generated = next(line for line in done.stdout.splitlines() if line.startswith("TOKENS"))
    assert json.loads(generated.removeprefix("TOKENS")) == tokens[:, 12:].tolist()
