"""Random models of the neural tokenizers' own classes, small enough for a test, in the files that are published."""

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from s3tokenizer.model_v2 import ModelConfig, S3TokenizerV2
from transformers import (
    HubertConfig,
    HubertModel,
    MimiConfig,
    MimiModel,
    MoonshineConfig,
    MoonshineModel,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMModel,
)

HIDDEN = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48, conv_dim=(16,) * 7,
              num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, initializer_range=0.3)


def hubert(folder, **changes):
    """Group norm over time and normalised input, as hubert-base-ls960."""
    return _hidden(folder, HubertModel, HubertConfig(**{**HIDDEN, **changes}), do_normalize=True)


def wavlm(folder, **changes):
    """Input as it is, as wavlm-base-plus."""
    return _hidden(folder, WavLMModel, WavLMConfig(**{**HIDDEN, **changes}), do_normalize=False)


def mimi(folder):
    """Four codebooks of 64 codes at 24 kHz and 12.5 Hz."""
    torch.manual_seed(0)
    model = MimiModel(MimiConfig(
        hidden_size=32, num_filters=4, codebook_size=64, codebook_dim=16, vector_quantization_hidden_dimension=16,
        num_quantizers=4, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32,
        upsample_groups=32)).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("embed_sum"):  # zeros in a fresh model
            buffer.normal_()
    model.save_pretrained(folder)
    return model


def moonshine(folder):
    """An encoder of two blocks, 32 wide."""
    torch.manual_seed(0)
    model = MoonshineModel(MoonshineConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=1, encoder_num_attention_heads=2, decoder_num_attention_heads=2,
        initializer_range=0.3)).eval()
    model.save_pretrained(folder)
    return model


S3 = {"n_audio_state": 64, "n_audio_head": 1, "n_audio_layer": 1}  # stands for `neural.S3_SHAPE`


def s3(folder, **changes):
    """S3 v2 of this shape: its weights as `speech_tokenizer_v2.onnx` names them. s3tokenizer's onnx2torch looks for
    names of initialisers for the convolutions and the quantiser and names of nodes for all others."""
    torch.manual_seed(0)
    model = S3TokenizerV2("v2", ModelConfig(**{**S3, **changes})).eval()
    with torch.no_grad():
        model.quantizer._codebook.project_down.weight *= 40  # or most codes are the middle one
    nodes, weights = [], []

    def node(op, name, *inputs):
        names = []
        for given, tensor in inputs:
            names.append(given)
            weights.append(numpy_helper.from_array(np.ascontiguousarray(tensor.detach().numpy()), given))
        nodes.append(helper.make_node(op, ["x", *names], ["x"], name=name))

    conv1, conv2, down = model.encoder.conv1, model.encoder.conv2, model.quantizer._codebook.project_down
    node("Conv", "/conv1/Conv", ("onnx::Conv_2216", conv1.weight), ("onnx::Conv_2217", conv1.bias))
    node("Conv", "/conv2/Conv", ("onnx::Conv_2218", conv2.weight), ("onnx::Conv_2219", conv2.bias))
    for i, block in enumerate(model.encoder.blocks):
        at, kept = f"/blocks.{i}", f"blocks.{i}"
        for name, linear in [*((f"attn/{n}", getattr(block.attn, n)) for n in ("query", "key", "value", "out")),
                             ("mlp/mlp.0", block.mlp[0]), ("mlp/mlp.2", block.mlp[2])]:
            node("MatMul", f"{at}/{name}/MatMul", (f"onnx::MatMul_{i}_{name}", linear.weight.t()))
            if linear.bias is not None:
                node("Add", f"{at}/{name}/Add", (f"{kept}.{name}.bias", linear.bias))
        node("Conv", f"{at}/attn/fsmn_block/Conv", (f"{kept}.fsmn.weight", block.attn.fsmn_block.weight))
        for name in ("attn_ln", "mlp_ln"):
            norm = getattr(block, name)
            node("LayerNormalization", f"{at}/{name}/LayerNormalization",
                 (f"{kept}.{name}.weight", norm.weight), (f"{kept}.{name}.bias", norm.bias))
    node("MatMul", "/quantizer/project_in/MatMul", ("onnx::MatMul_2536", down.weight.t()))
    node("Add", "/quantizer/project_in/Add", ("quantizer.project_in.bias", down.bias))
    folder.mkdir(exist_ok=True)
    graph = helper.make_graph(nodes, "s3", [], [], weights)
    onnx.save(helper.make_model(graph), folder / "speech_tokenizer_v2.onnx")
    return model


def _hidden(folder, kind, config, do_normalize):
    torch.manual_seed(0)
    model = kind(config).eval()
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(folder)
    return model
