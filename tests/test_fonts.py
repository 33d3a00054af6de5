"""Names in any script: drawn with an installed font that has them, or told."""

from __future__ import annotations

import warnings

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager, pyplot

from fairseq_ext.fonts import fonts_for


def made_font(path, name, characters):
    """A font whose characters are triangles, and its missing ones empty."""
    pen = TTGlyphPen(None)
    for move in ((100, 0), (500, 800), (900, 0)):
        (pen.lineTo if pen.points else pen.moveTo)(move)
    pen.closePath()
    names = [".notdef", *(f"uni{ord(character):04X}" for character in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(character): f"uni{ord(character):04X}" for character in characters})
    builder.setupGlyf({glyph: pen.glyph() if glyph != ".notdef" else TTGlyphPen(None).glyph() for glyph in names})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """No fonts but matplotlib's and those that the test makes, which are installed after matplotlib looked."""
    own = [entry for entry in font_manager.fontManager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    files = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)
    return lambda name, characters: files.append(made_font(tmp_path / f"{name}.ttf", name, characters))


def drawn(texts, path):
    """A figure of texts; matplotlib must warn of no glyph."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = pyplot.figure(figsize=(2, 1))
        figure.text(0.1, 0.4, " ".join(texts), fontsize=20)
        with fonts_for(figure):
            figure.savefig(path)
    pyplot.close(figure)
    return pyplot.imread(path)


def test_a_font_that_has_the_characters_is_used(installed, tmp_path, capsys):
    boxes = drawn(["音樂"], tmp_path / "boxes.png")
    assert "no installed font has 樂音: drawn as boxes" in capsys.readouterr().err
    installed("Triangles", "音樂")
    triangles = drawn(["音樂"], tmp_path / "triangles.png")
    assert capsys.readouterr().err == "" and (boxes != triangles).any()
    # the same triangles as those of that font alone
    with pyplot.rc_context({"font.family": "Triangles"}):
        assert (drawn(["音樂"], tmp_path / "alone.png") == triangles).all()


def test_several_fonts_together_and_one_line_for_what_none_has(installed, tmp_path, capsys):
    installed("First", "音樂搖")
    installed("Second", "滾樂")
    drawn(["rock 搖滾", "音樂 ☃"], tmp_path / "a.png")
    assert capsys.readouterr().err == ""
    drawn(["rock 搖滾", "龘 龘"], tmp_path / "b.png")
    assert capsys.readouterr().err.splitlines() == [
        "no installed font has 龘: drawn as boxes; install one, such as Noto Sans CJK"
    ]


def test_matplotlibs_own_characters_ask_for_no_other_font(tmp_path, monkeypatch):
    monkeypatch.setattr("fairseq_ext.fonts._covering", lambda _: pytest.fail("looked for fonts"))
    drawn(["naïve Ⅷ", "r&b\tжизнь"], tmp_path / "a.png")


def test_every_text_of_a_figure_is_seen(installed, tmp_path, capsys):
    installed("Triangles", "一二三四五六")
    figure, axes = pyplot.subplots()
    axes.plot([1, 2], label="一")
    axes.set_xticks([0, 1], ["二", ""])
    axes.set(ylabel="三", title="四")
    figure.suptitle("五")
    axes.annotate("六", (0, 1))
    axes.legend()
    with warnings.catch_warnings(), fonts_for(figure):
        warnings.simplefilter("error")
        figure.savefig(tmp_path / "a.png")
    pyplot.close(figure)
    assert capsys.readouterr().err == ""


def test_a_file_that_is_no_font_is_passed_over(installed, tmp_path, monkeypatch, capsys):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "broken.ttf")])
    drawn(["音"], tmp_path / "a.png")
    assert "no installed font has 音" in capsys.readouterr().err
