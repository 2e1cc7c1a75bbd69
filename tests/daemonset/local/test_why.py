import shutil
from pathlib import Path

import pytest

import daemonset.local
from daemonset.cli import main

SHOP = Path(daemonset.local.__file__).parent / "examples" / "shop"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The demo's shop, all of it in the mesh."""
    shutil.copytree(SHOP / "mesh", tmp_path / "shop")
    for name in ("shop", "street"):
        path = tmp_path / "shop" / f"namespace-{name}.yaml"
        path.write_text(path.read_text() + "  labels: {istio.io/dataplane-mode: ambient}\n")
    return tmp_path / "shop"


def ask(folder: Path, *words: str) -> int:
    return main(["why", "--folder", str(folder), *words])


def test_the_answer_names_policy_rule_and_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(SHOP / "policies" / "orders-only-for-web.yaml", folder)
    assert ask(folder, "web", "orders", "80") == 0
    text = capsys.readouterr().out
    assert text.startswith("shop/web → service shop/orders, 10.96.")
    assert ":80: allowed\n" in text
    assert (
        "✓ the ztunnel of shop/orders decides: allowed by policy shop/orders-only-for-web" in text
    )
    assert "AuthorizationPolicy shop/orders-only-for-web: orders-only-for-web.yaml:12\n" in text
    assert ask(folder, "visitor", "orders") == 1
    text = capsys.readouterr().out
    assert text.count("REFUSED") == 2  # both ports
    assert "AuthorizationPolicy shop/orders-only-for-web: orders-only-for-web.yaml:2\n" in text


def test_strict_is_named_by_the_object_that_asks_for_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(SHOP / "policies" / "strict.yaml", folder)
    street = folder / "namespace-street.yaml"
    street.write_text(street.read_text().replace("ambient}", "none}"))
    assert ask(folder, "busker", "catalog.shop.svc.cluster.local") == 1
    assert "PeerAuthentication shop/strict: strict.yaml:2\n" in capsys.readouterr().out


def test_a_question_without_an_answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(folder, "web", "nobody") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("there is no workload nobody with an address; there are: shop/")


def test_a_folder_with_errors_gives_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken.yaml").write_text("kind: [")
    assert ask(folder, "web", "orders") == 1
    assert "broken.yaml:1:" in capsys.readouterr().err
