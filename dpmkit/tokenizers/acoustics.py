"""What a waveform sounds like, frame by frame: MFCC, log energy, F0 and voicing; and pooled over an utterance."""

from __future__ import annotations

import numpy as np
import torch
from torchaudio.transforms import MFCC

from .. import audio, machine

RATE = 25.0  # frames per second
WINDOW = 1024  # samples (64 ms) of one frame: two periods of 60 Hz and more
CEPSTRA = 12  # MFCCs 1 to 12; the zeroth is energy again
PROSODY = slice(CEPSTRA, CEPSTRA + 3)  # log energy, log2 F0, voicing
PITCH = (60.0, 600.0)  # Hz, searched for F0
VOICED = 0.5  # of 1, normalised autocorrelation from which a frame counts as voiced
FLOOR = 1e-5  # root mean square below which there is no voice: -100 dB of full scale
CENTRE = 160.0  # Hz, F0 of an utterance without a voiced frame
HANN = torch.hann_window(WINDOW)
# One spectrum per window: `frames` cuts the windows, so that every one is computed on its own.
CEPSTRUM = MFCC(audio.RATE, CEPSTRA + 1, melkwargs={"n_fft": WINDOW, "hop_length": WINDOW, "n_mels": 40,
                                                    "center": False})


def frames(waveform: np.ndarray, frame_rate: float = RATE) -> np.ndarray:
    """Acoustic frames, float32, shape (frames, 15): MFCC 1 to 12, log10 energy, log2 F0, voicing in [0, 1].

    Unvoiced frames take F0 from the voiced ones around them, linearly; an utterance without any takes CENTRE.
    """
    hop = audio.RATE / frame_rate
    count = max(1, round(len(waveform) / hop))
    # Frame i looks at WINDOW samples around its middle, (i + 1/2) hop; zeros lie beyond both ends.
    starts = np.round((np.arange(count) + 0.5) * hop).astype(int)
    padded = np.pad(waveform, (WINDOW // 2, WINDOW + int(hop)))
    windows = torch.from_numpy(padded[starts[:, None] + np.arange(WINDOW)])
    with torch.inference_mode(), machine.one_thread():
        cepstra = CEPSTRUM(windows)[:, 1:, 0]
        rms = windows.square().mean(dim=1).sqrt()
        f0, strength = _pitch(windows)
    energy = torch.log10(rms.clamp_min(FLOOR)).numpy()
    voiced = (strength.numpy() > VOICED) & (rms.numpy() > FLOOR)
    log_f0 = np.full(count, np.log2(CENTRE))
    if voiced.any():
        log_f0 = np.interp(np.arange(count), np.flatnonzero(voiced), np.log2(f0.numpy()[voiced]))
    return np.column_stack([cepstra.numpy(), energy, log_f0, strength.numpy()]).astype(np.float32)


def _pitch(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """F0 in Hz and voicing strength in [0, 1], each (frames,), by the autocorrelation of the windowed signal
    over that of the window (Boersma 1993), with his preference for the higher of two octaves: 0.02 an octave."""
    low, high = int(audio.RATE / PITCH[1]), int(audio.RATE / PITCH[0])
    cost = 0.02 * torch.log2(torch.arange(low, high + 1) / low)
    r = _autocorrelation((windows - windows.mean(dim=1, keepdim=True)) * HANN, high) / _autocorrelation(HANN, high)
    best = (r[:, low:high + 1] - cost).argmax(dim=1, keepdim=True) + low
    before, peak, after = r.gather(1, best + torch.tensor([-1, 0, 1])).unbind(dim=1)
    curve = before - 2 * peak + after
    shift = torch.where(curve < -1e-6, (before - after) / (2 * curve.clamp_max(-1e-6)), 0.0)
    return audio.RATE / (best[:, 0] + shift.clamp(-0.5, 0.5)), peak.clamp(0.0, 1.0)


def _autocorrelation(x: torch.Tensor, high: int) -> torch.Tensor:
    """Autocorrelation at lags 0 to high + 1 over that at 0, shape (..., high + 2)."""
    spectrum = torch.view_as_real(torch.fft.rfft(x, 2 * WINDOW)).square().sum(dim=-1)
    c = torch.fft.irfft(spectrum)[..., :high + 2]
    return c / c[..., :1].clamp_min(1e-10)


def pooled(frames: np.ndarray) -> np.ndarray:
    """One utterance in 76 numbers, of its frames at RATE: mean, standard deviation, 10th, 50th and 90th percentile
    of each feature, and its log duration."""
    return np.concatenate([frames.mean(axis=0), frames.std(axis=0), *np.percentile(frames, [10, 50, 90], axis=0),
                           [np.log2(len(frames))]])
