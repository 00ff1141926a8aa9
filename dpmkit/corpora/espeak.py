"""espeak-ng as a synthesiser: ctypes over the library and the voices that the wheel `espeakng_loader` ships.

The library keeps state between utterances that espeak_Terminate does not reset. So `speak` loads it afresh every
time (1 ms) and seeds it: the same arguments give the same samples, whatever was spoken before.
"""

from __future__ import annotations

import _ctypes
import ctypes
import os

import numpy as np

from ..settings import UserError

# espeak-ng's speak_lib.h: AUDIO_OUTPUT_SYNCHRONOUS, espeakINITIALIZE_DONT_EXIT, espeakCHARS_UTF8, espeakRATE,
# espeakPITCH, espeakRANGE.
SYNCHRONOUS, DONT_EXIT, UTF8 = 2, 1 << 15, 1
RATE, PITCH, RANGE = 1, 3, 4
CURE = "install espeakng-loader anew, as requirements.lock pins it"

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak(text: str, voice: str, pitch: int, pitch_range: int, rate: int) -> tuple[np.ndarray, int]:
    """Samples, float32 in [-1, 1], shape (samples,), and their rate in Hz. Not for two threads at once.

    `pitch` 0 to 99 (50: the voice's own; 50 steps are an octave), `pitch_range` 0 to 99 (50: the voice's own;
    proportional), `rate` 80 to 450 words per minute. UserError where the library does not start or lacks the voice.
    """
    pieces: list[np.ndarray] = []

    def collect(samples, count, _events) -> int:
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    callback = _Callback(collect)  # named, as C holds no reference to it
    try:
        import espeakng_loader
        library = ctypes.CDLL(espeakng_loader.get_library_path())
    except (ImportError, OSError) as error:
        raise UserError(f"espeak-ng cannot be loaded ({error}); {CURE}") from error
    try:
        hertz = library.espeak_Initialize(SYNCHRONOUS, 0, os.fsencode(espeakng_loader.get_data_path()), DONT_EXIT)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        ctypes.CDLL(None).srand(1)  # two of its voices draw from the C library instead
        library.espeak_SetSynthCallback(callback)
        if hertz <= 0 or library.espeak_SetVoiceByName(voice.encode()):
            raise UserError(f"espeak-ng does not start (code {hertz}) or has no voice {voice!r}; {CURE}")
        for parameter, value in ((RATE, rate), (PITCH, pitch), (RANGE, pitch_range)):
            library.espeak_SetParameter(parameter, int(value), 0)
        data = text.encode() + b"\0"
        library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 1, 0, UTF8, None, None)
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.int16)
    return samples.astype(np.float32) / 32768, hertz
