"""Text encoders from elsewhere: of a run of ours, or as released."""

import pytest
import torch

from course.errors import CheckpointError
from course.training import saved


@pytest.mark.parametrize("layout", ["pipeline", "clip"])
def test_a_released_clip(layout, tmp_path):
    """transformers saves it, we read the text half: of a pipeline's folders, or of a whole CLIP's single one."""
    import transformers

    from course.evaluation import parity_pipelines as small
    theirs_tokens, ours = small.tokenizer(tmp_path / "tokenizer")
    sizes = dict(hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
    words = transformers.CLIPTextConfig(vocab_size=len(ours.ids), max_position_embeddings=77, hidden_act="quick_gelu",
                                        eos_token_id=ours.end_id, bos_token_id=ours.start_id, **sizes)
    if layout == "pipeline":
        theirs = small.randomised(transformers.CLIPTextModel(words))
        theirs.save_pretrained(tmp_path / "text_encoder")
        text_half = theirs
    else:
        whole = small.randomised(transformers.CLIPModel(transformers.CLIPConfig(
            text_config=words.to_dict(), vision_config=dict(image_size=32, patch_size=16, **sizes), projection_dim=16)))
        for file in (tmp_path / "tokenizer").iterdir():
            file.rename(tmp_path / file.name)
        (tmp_path / "tokenizer").rmdir()
        whole.save_pretrained(tmp_path)
        text_half = whole.text_model
    tokens, encoder = saved.text_encoder(tmp_path)
    prompts = ["a small red circle", "a large blue ring"]
    ids = tokens(prompts)
    with torch.no_grad():
        expected = text_half(ids).last_hidden_state
        assert torch.allclose(encoder(ids), expected, atol=1e-4 * expected.abs().max().item())
    assert torch.equal(ids, torch.tensor(theirs_tokens(prompts, padding="max_length")["input_ids"]))
    assert not any(p.requires_grad for p in encoder.parameters())


def test_what_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="course train vae"):
        saved.autoencoder(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "vae.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        saved.autoencoder(tmp_path)
    with pytest.raises(CheckpointError, match="could not be downloaded"):
        saved.text_encoder(str(tmp_path / "no such folder"))
