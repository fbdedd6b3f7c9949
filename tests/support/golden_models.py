"""Golden files of the published models: read, and held against a model of ours."""

import json

from safetensors import safe_open

from seq2exp import load_official, seq2exp_loss
from seq2exp.official import official_name

SEQ2EXP = ["official_soft", "official_hard", "official_top10"]


def load(golden, name):
    with safe_open(golden / f"{name}.safetensors", "pt") as f:
        tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
        metadata = f.metadata()
    groups = {g: {k[2:]: v for k, v in tensors.items() if k.startswith(f"{g}.")} for g in "wg"}
    config = json.loads(metadata["config"]) | {"_class": metadata["model"]}
    model = load_official(groups["w"], config)
    inputs = {k[3:]: v for k, v in tensors.items() if k.startswith("in.")}
    outputs = {k[4:]: v for k, v in tensors.items() if k.startswith("out.")}
    return model, inputs, outputs, groups["g"], float(metadata.get("kl_weight", 0))


def close(ours, theirs, tolerance):
    """Relative root mean square error."""
    error = (ours.detach() - theirs).double().norm() / theirs.double().norm().clamp_min(1e-30)
    assert error.item() <= tolerance, error.item()


def check_gradients(model, expected):
    parameters = dict(model.named_parameters(remove_duplicate=False))
    seen = set()
    for key, theirs in expected.items():
        name = official_name(key)
        ours = parameters[name].grad
        theirs = theirs[0] if key == "pos_emb" else theirs
        seen.add(id(parameters[name]))
        if float(theirs.norm()) == 0:
            assert ours is None or float(ours.norm()) < 1e-9, key
            continue
        assert ours is not None, key
        close(ours, theirs, 1e-3)
    without = [
        n for n, p in parameters.items() if id(p) not in seen and p.grad is not None and float(p.grad.norm()) > 0
    ]
    assert not without, f"the published model has no gradient for {without}"


def check_seq2exp(model, x, y, grads, kl_weight, as_codes):
    sequence = x["tokens"] if as_codes else x["seqs"]
    exclude = x["mask_regions"][
        ..., 1
    ]  # the include list, [..., 0], is not used by these models (use_include_list=False)
    out = model(sequence, x["signals"], x["rna_feat"], exclude=exclude)
    for ours, theirs in (
        (out.expression, y["prediction"][:, 0]), (out.mask, y["mask"]), (out.alpha, y["alpha"]), (out.beta, y["beta"]),
        (out.kl, y["kl"][0]), (out.continuity, y["continuity"][0]),
    ):  # fmt: skip
        close(ours, theirs, 1e-4)
    loss = seq2exp_loss(out, x["target"][:, 0], kl_weight)
    close(loss, y["loss"][0], 1e-4)
    loss.backward()
    check_gradients(model, grads)
