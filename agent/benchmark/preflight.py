"""What can be known before an engine is started: whether it can run an architecture, and whether there is memory."""

from agent.benchmark.campaign import Campaign, Candidate
from agent.benchmark.engine_limits import PRETENDS, check_recipe, check_shape
from agent.benchmark.machine import Machine
from agent.device import CPU_PROFILE_ID
from hwprofiles.catalog import load_profile
from hwprofiles.profile import BYTES_PER_ELEMENT
from scaling.quantity import NotMeasured
from scaling.recipes import ServingRecipe, Workload
from scaling.serving import predict_serving
from scaling.serving_cost import DeviceShare, device_share
from scaling.weight_formats import recipe_words

HOLDS_THE_WHOLE_BATCH = frozenset({"transformers"})
"""Engines that keep the KV cache of the whole batch at once; in the others what does not fit waits in a queue."""


def check_campaign(campaign: Campaign, machine: Machine) -> None:
    """Refuse what cannot be measured on this machine, before anything is started.

    Raises:
        ValueError: the engine cannot follow the recipe or run a candidate's shape, or weights and KV cache need more
            than the memory.
    """
    check_recipe(campaign.recipe, machine)
    for candidate in campaign.candidates:
        check_shape(candidate, campaign.recipe, machine)
        for workload in campaign.workloads:
            if campaign.recipe.engine == PRETENDS:
                _check_pretended(campaign, candidate, workload)
            else:
                _check_memory(campaign, candidate, workload, machine)


def _check_pretended(campaign: Campaign, candidate: Candidate, workload: Workload) -> None:
    profile = load_profile(CPU_PROFILE_ID)
    prediction = predict_serving(candidate.architecture, profile, campaign.recipe, workload)
    if isinstance(prediction.requests_per_second, NotMeasured):
        raise ValueError(
            f"{candidate.name}: the fake engine cannot serve this: {prediction.requests_per_second.reason}"
        )


def _check_memory(campaign: Campaign, candidate: Candidate, workload: Workload, machine: Machine) -> None:
    """Weights and KV cache are a lower bound: activations and the engine's own buffers come on top."""
    recipe, tokens = campaign.recipe, workload.input_tokens + workload.output_tokens
    sequences = workload.batch_size if recipe.engine in HOLDS_THE_WHOLE_BATCH else 1
    share = _least_share(candidate, recipe)
    cache = sequences * tokens * share.key_value_bytes_per_token
    if share.weight_bytes + cache <= machine.available_bytes:
        return
    what = f"batch {workload.batch_size}" if sequences > 1 else "one sequence"
    smaller = ("a smaller --batch, " if sequences > 1 else "") + "shorter lengths, "
    narrower = "--dtype bfloat16 " if BYTES_PER_ELEMENT[recipe.dtype] > BYTES_PER_ELEMENT["bfloat16"] else ""
    each = f" on each of {recipe.tensor_parallel_size} devices" if recipe.tensor_parallel_size > 1 else ""
    raise ValueError(
        f"{candidate.name} does not fit in the memory of {machine.place}: weights of {share.weight_bytes / 1e9:.2f} GB "
        f"and {cache / 1e9:.2f} GB of KV cache ({what} of {tokens} tokens, {recipe_words(recipe)}){each} need at least "
        f"{(share.weight_bytes + cache) / 1e9:.2f} GB, available are {machine.available_bytes / 1e9:.2f} GB. "
        f"Give {smaller}{narrower}or a smaller architecture"
    )


def _least_share(candidate: Candidate, recipe: ServingRecipe) -> DeviceShare:
    """What a device holds at least: with a quantisation of unknown bits, the weights are not counted."""
    try:
        return device_share(candidate.architecture, recipe)
    except ValueError:
        share = device_share(candidate.architecture, recipe.model_copy(update={"quantization": None}))
        return DeviceShare(weight_bytes=0.0, key_value_bytes_per_token=share.key_value_bytes_per_token)
