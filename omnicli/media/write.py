"""A small writer of real films: h264 pictures with B-frames and AAC sound, streamed into a container.

For generated films (demo, training world, tests, benchmarks). It never holds the film in memory, takes any frame
times, and knows nothing of what is drawn or said.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

# Divisible by 24, 25 and 30: the usual frame times are exact.
VIDEO_CLOCK = 90_000
# Encoders that cannot count finer than whole frames: frame times are rounded to the film's rate.
_COARSE = ("mpeg4", "mpeg2video", "mpeg1video", "h263", "flv", "msmpeg4", "msmpeg4v2")


class FilmWriter:
    """Write frames and samples into one file; the container follows from the file's suffix (mp4, mkv, ts, ...).

    Parameters
    ----------
    path : str or Path
        File to write; replaced if it exists.
    width, height : int
        Size in pixels, both even (4:2:0 colour).
    fps : float
        Nominal frame rate: sets the encoder's rate control and the length of the last frame. Frames may be given at
        any times.
    sample_rate : int or None
        Samples per second of the sound (mono); None writes a film without a sound track.
    gop : int
        Largest number of frames from one key frame to the next.
    bframes : int
        Most B-frames in a row (0: none).
    preset, crf : str, int
        x264 effort and quality.
    threads : int
        Encoder threads, 0 for as many as there are cores.
    codec : str
        Encoder name as FFmpeg knows it; ``options`` are its private options beside those above.
    audio_codec : str
        Encoder of the sound.
    audio_start_s : float
        Second of the film at which the first sample sounds; before it there is no sound at all, not silence.
    sample_aspect : (int, int)
        Width to height of one pixel.
    options : mapping, optional
        Further encoder options, such as ``{"x264-params": "open-gop=1"}``.
    container_options : mapping, optional
        Options of the container, such as ``{"movflags": "faststart"}``.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        fps: float = 25.0,
        *,
        sample_rate: int | None = 16_000,
        gop: int = 250,
        bframes: int = 3,
        preset: str = "veryfast",
        crf: int = 23,
        threads: int = 0,
        codec: str = "libx264",
        audio_codec: str = "aac",
        audio_start_s: float = 0.0,
        sample_aspect: tuple[int, int] = (1, 1),
        options: Mapping[str, str] | None = None,
        container_options: Mapping[str, str] | None = None,
    ) -> None:
        if width % 2 or height % 2 or width < 2 or height < 2:
            raise ValueError(f"the frame size must be even, not {width}x{height}")
        if not fps > 0:
            raise ValueError(f"fps must be positive, not {fps}")
        self.path = Path(path)
        self.width, self.height, self.fps = width, height, float(fps)
        self.sample_rate = sample_rate
        # bitexact: no encoder version and no date in the file, so that the same film gives the same bytes
        self._container: Any = av.open(
            str(path), "w", container_options={"fflags": "+bitexact", **(container_options or {})}
        )
        rate = Fraction(fps).limit_denominator(1001)
        extra = {"preset": preset, "crf": str(crf)} if codec in ("libx264", "libx265") else {}
        extra |= {"threads": str(threads) if threads else "auto", **(options or {})}
        video: Any = self._container.add_stream(codec, rate=rate, options=extra)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        context = video.codec_context
        self._clock = rate if codec in _COARSE else Fraction(VIDEO_CLOCK)
        context.time_base = 1 / self._clock
        context.gop_size, context.max_b_frames = gop, bframes
        context.sample_aspect_ratio = Fraction(*sample_aspect)
        self._video = video
        self._scaler = VideoReformatter()
        self._last_pts: int | None = None
        self._audio: Any = None
        self._pending = np.zeros(0, np.float32)
        if sample_rate is not None:
            self._audio = self._container.add_stream(audio_codec, rate=sample_rate, layout="mono")
            self._audio.codec_context.time_base = Fraction(1, sample_rate)
            self._audio_pts = round(audio_start_s * sample_rate)
            offered = [f.name for f in self._audio.codec_context.codec.audio_formats or ()]
            usable = [name for name in ("fltp", "flt", "s16", "s16p") if name in offered]
            if not usable:
                raise ValueError(f"{audio_codec} takes neither float nor 16-bit samples")
            self._audio.codec_context.format = usable[0]
            self._audio.codec_context.open()
            self._block = self._audio.codec_context.frame_size or 1024
            self._format = self._audio.codec_context.format.name
        self._closed = False

    def add_frame(self, rgb: np.ndarray, time_s: float) -> None:
        """Add one picture.

        Parameters
        ----------
        rgb : (height, width, 3) uint8
        time_s : float
            Second at which it appears; later than the frame before.

        Raises
        ------
        ValueError
            If the size is not the film's or the time does not grow.
        """
        if rgb.shape != (self.height, self.width, 3) or rgb.dtype != np.uint8:
            raise ValueError(f"expected uint8 ({self.height}, {self.width}, 3), got {rgb.dtype} {rgb.shape}")
        pts = round(time_s * self._clock)
        if self._last_pts is not None and pts <= self._last_pts:
            raise ValueError(f"frame at {time_s:.6f} s does not come after the one before")
        self._last_pts = pts
        image = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
        frame = self._scaler.reformat(image, format="yuv420p", threads=1)
        frame.pts, frame.time_base = pts, 1 / self._clock
        self._mux_video(frame)

    def add_samples(self, samples: np.ndarray, time_s: float | None = None) -> None:
        """Add sound.

        Parameters
        ----------
        samples : (n,) float32
            Mono, -1..1. They follow those before without a seam.
        time_s : float, optional
            Second at which these samples begin, later than the end of those before: leaves a gap with no packets.

        Raises
        ------
        ValueError
            If the film has no sound track, the samples are not one-dimensional, or ``time_s`` lies in the past.
        """
        if self._audio is None:
            raise ValueError("this film has no sound track (sample_rate=None)")
        if samples.ndim != 1:
            raise ValueError(f"expected mono samples (n,), got {samples.shape}")
        if time_s is not None:
            self._flush_block()
            pts = round(time_s * self._audio.codec_context.sample_rate)
            if pts < self._audio_pts:
                raise ValueError(f"sound at {time_s:.6f} s lies before the end of the sound already written")
            self._audio_pts = pts
        data = np.concatenate([self._pending, samples.astype(np.float32, copy=False)])
        whole = len(data) // self._block * self._block
        for begin in range(0, whole, self._block):
            self._mux_audio(data[begin : begin + self._block])
        self._pending = data[whole:].copy()

    def close(self) -> None:
        """Write what the encoders still hold and finish the file."""
        if self._closed:
            return
        self._closed = True
        try:
            self._mux_video(None)
            if self._audio is not None:
                self._flush_block()
                self._container.mux(self._audio.encode(None))
        finally:
            self._container.close()

    def _mux_video(self, frame: Any) -> None:
        for packet in self._video.encode(frame):
            if not packet.duration:  # x264 leaves it open; the last frame would get no length in mp4
                packet.duration = round(1 / self.fps / packet.time_base)
            self._container.mux(packet)

    def _flush_block(self) -> None:
        if len(self._pending):
            short = self._pending
            self._pending = np.zeros(0, np.float32)
            self._mux_audio(np.pad(short, (0, self._block - len(short))))

    def _mux_audio(self, block: np.ndarray) -> None:
        if self._format in ("fltp", "flt"):
            data = block[None]
        else:
            data = (np.clip(block, -1, 1) * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(data), format=self._format, layout="mono")
        frame.sample_rate = self._audio.codec_context.sample_rate
        frame.pts, frame.time_base = self._audio_pts, Fraction(1, frame.sample_rate)
        self._audio_pts += len(block)
        self._container.mux(self._audio.encode(frame))

    def __enter__(self) -> FilmWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
