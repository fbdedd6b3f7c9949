"""What bench/peers.py does without network, compiler or GPU."""

from __future__ import annotations

import json

import peers
import pytest
from peers import PeerError

CONV = """
template <class T, class W> void conv_cuda(int) {}
template void conv_cuda<float, float>(int);
template void conv_cuda<at::Half, float>(int);
template void conv_channellast_cuda<float, float>(int);
"""


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for name in ("FETCHED", "CARRIED", "BUILT"):
        monkeypatch.setattr(peers, name, tmp_path / name.lower())
    return tmp_path


def test_scan_has_every_type_once(tmp_path):
    """As kernels or as functions that raise: the package's dispatch names all of them."""
    (tmp_path / "selective_scan.cpp").write_text("dispatch")
    sources = peers.scan_sources(tmp_path)
    defined = [line for text in sources.values() for line in text.splitlines() if line.startswith("template <> void")]
    names = {line.split("void ")[1].split("(")[0] for line in defined}
    assert len(defined) == len(names) == 2 * 3 * 2
    assert sum("launch<128, 16" in text for text in sources.values()) == 2 * 2


def test_conv_is_split_by_types(tmp_path):
    (tmp_path / "conv.cu").write_text(CONV)
    (tmp_path / "conv.cpp").write_text("dispatch")
    (tmp_path / "conv.h").write_text("")
    sources = peers.conv_sources(tmp_path)
    instances = {name: text.count("template void") for name, text in sources.items()}
    assert instances == {"conv_float_float.cu": 2, "conv__Half_float.cu": 1, "conv.cpp": 0}


def test_pack_takes_what_is_needed(folders, capsys):
    for peer in peers.PEERS:
        for name in (*peer.files, "LICENSE", f"{peer.csrc}/kernel.cu", "tests/unneeded.py"):
            path = peers.FETCHED / peer.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    peers.pack()
    mamba = peers.CARRIED / peers.MAMBA.folder
    assert (mamba / "mamba_ssm/__init__.py").read_text() == ""
    assert (mamba / "mamba_ssm/ops/selective_scan_interface.py").exists() and (mamba / "LICENSE").exists()
    assert (mamba / "csrc/selective_scan/kernel.cu").exists() and not (mamba / "tests").exists()


def test_pack_without_fetch_says_so(folders):
    with pytest.raises(SystemExit, match="fetch"):
        peers.pack()


def test_a_failed_build_is_a_reason_not_an_error(folders, capsys):
    peers.build(90)
    status = json.loads((peers.BUILT / "status.json").read_text())
    assert set(status) == {"mamba_ssm", "causal_conv1d"}
    assert all("is neither in" in reason for reason in status.values())
    assert capsys.readouterr().out.count("not measured: ") == 2


def test_reason_is_the_first_error():
    script = "import sys; print('note', file=sys.stderr); print('x.cu(3): error: broken', file=sys.stderr); sys.exit(1)"
    with pytest.raises(PeerError, match=r"^x\.cu\(3\): error: broken$"):
        peers.run([peers.sys.executable, "-c", script])
