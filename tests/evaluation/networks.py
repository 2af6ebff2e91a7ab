"""Networks in the formats that they are released in, weights at random: the FID's Inception, a CLIP, the trunks of LPIPS."""

import json
from pathlib import Path
from unittest import mock

import pytest
import torch


def inception(path: Path):
    """torch-fidelity's class, filled at random and saved as its release file; returns the network."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with mock.patch.object(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None), \
            mock.patch.object(module, "load_state_dict_from_url", lambda *_, **__: {}):
        torch.manual_seed(0)
        theirs = module.FeatureExtractorInceptionV3("theirs", ["2048", "logits_unbiased"])
    torch.save(theirs.state_dict(), path)
    return theirs


def clip(folder: Path) -> tuple:
    """A small CLIP of transformers, saved in `folder` with its tokenizer and preprocessing; (model, processor)."""
    transformers = pytest.importorskip("transformers")
    letters = [chr(c) for c in range(97, 123)]
    vocabulary = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    words, merges = folder.parent / "vocab.json", folder.parent / "merges.txt"
    words.write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    merges.write_text("#version: 0.2\n")
    tokens = transformers.CLIPTokenizer(str(words), str(merges))
    config = transformers.CLIPConfig(
        text_config=dict(vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, max_position_embeddings=40, eos_token_id=53, bos_token_id=52),
        vision_config=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32,
                           patch_size=8), projection_dim=16)
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    prepare = transformers.CLIPProcessor(transformers.CLIPImageProcessor(size=32, crop_size=32), tokens)
    model.save_pretrained(folder), prepare.save_pretrained(folder)
    return model, prepare


def trunk(path: Path, net: str = "alex") -> dict:
    """torchvision's AlexNet ("alex") or VGG16 ("vgg"), saved as its weight file; returns the tensors."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    tensors = {"vgg": torchvision.models.vgg16, "alex": torchvision.models.alexnet}[net](weights=None).state_dict()
    torch.save(tensors, path)
    return tensors
