"""Streaming mel against the stock extractor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from omnicli.models.mel import SILENCE, LogMel, log_mel, log_mel_maximum, mel_filters, mel_frame_count
from tests.support import tiny


@pytest.fixture(scope="module")
def extractor():
    return WhisperFeatureExtractor(feature_size=128, chunk_length=30, return_attention_mask=True)


def stock(extractor, samples):
    out = extractor(samples, sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
    return out.input_features[0][:, : int(out.attention_mask.sum())]


def test_the_filter_bank_is_the_stock_one(extractor):
    assert (mel_filters(128) - torch.from_numpy(extractor.mel_filters).float().T).abs().max() < 1e-9


@pytest.mark.parametrize("n", [1, 100, 159, 160, 201, 400, 16000, 32123, 100_000, 48_159])
@pytest.mark.parametrize("block", [37, 1600, 32000])
def test_blocks_equal_the_stock_extractor(extractor, n, block):
    if n / block > 900:
        pytest.skip("slow and no different")
    samples = tiny.sound(n / 16000)
    blocks = [samples[i : i + block] for i in range(0, n, block)]
    stream = LogMel()
    raw = torch.cat([*(stream.feed(b) for b in blocks), stream.finish()], 1)
    expected = stock(extractor, samples)
    got = (raw.clamp(min=log_mel_maximum(blocks) - 8) + 4) / 4
    assert got.shape == expected.shape == (128, mel_frame_count(n))
    assert (got - expected).abs().max() < 1e-6


def test_a_click_in_the_last_sample_counts_for_the_maximum(extractor):
    samples = np.zeros(16_000 * 2 + 150, np.float32)
    samples[:3200] = tiny.sound(0.2) * 1e-3
    samples[-1] = 1.0
    assert (log_mel(samples) - stock(extractor, samples)).abs().max() < 1e-6


def test_silence_and_nothing(extractor):
    silent = np.zeros(32000, np.float32)
    assert torch.equal(log_mel(silent), stock(extractor, silent))
    assert log_mel_maximum([]) == SILENCE
    assert log_mel(np.zeros(0, np.float32)).shape == (128, 0)


def test_a_finished_stream_cannot_be_fed():
    stream = LogMel()
    stream.finish()
    with pytest.raises(ValueError, match="finished"):
        stream.feed(np.zeros(10, np.float32))
