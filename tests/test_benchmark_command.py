import json

from sgma_hf.commands.benchmark import main


def test_benchmark_reports_every_ratio_and_checks_the_combinations(tmp_path, capsys):
    arguments = ["--backbone_config", "pvt_v2_b0", "--size", "32", "--repeats", "1", "--decoder_hidden_size", "16"]
    assert main([*arguments, "--num_modalities", "2", "--output", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    printed = capsys.readouterr().out
    assert figures["combinations_agree_in_float64"] is True
    assert len(figures["ratios"]) == 8 and all(ratio > 0 for ratio in figures["ratios"].values())
    assert all(name in printed for name in figures["ratios"])
    # b0, two modalities: 2 x (179 C + C^2) and 8 C^2 and K C, over C = 32, 64, 160, 256
    assert figures["parameters"]["added_by_sgf"] == 2 * (179 * 512 + 96256) + 8 * 96256 + 5 * 512
