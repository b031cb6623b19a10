"""The Mandelbrot set as a PNG file: a goroutine per row; the same picture by one process beside it.

Rows near the middle of the set take a hundred times as long as those at its edge. Nobody shares
them out beforehand: an M that has run dry steals rows from another."""

import argparse
import os
import struct
import time
import zlib
from collections import Counter
from pathlib import Path

import mpgort
from mpgort import Chan, chan, go
from mpgort.demos import at_least_1

DEPTH = 160  # iterations until a point counts as inside


def row(y: int, width: int, height: int) -> bytes:
    """One row of the picture: a byte a pixel, the number of iterations, 0 inside the set."""
    scale = 3.0 / width
    im = (y - height / 2) * scale
    pixels = bytearray(width)
    for x in range(width):
        c = complex((x - width * 0.72) * scale, im)
        z = c
        for n in range(1, DEPTH):
            z = z * z + c
            if z.real * z.real + z.imag * z.imag > 4.0:
                pixels[x] = n
                break
    return bytes(pixels)


async def draw_row(y: int, width: int, height: int, rows: Chan[tuple[int, bytes, int]]) -> None:
    await rows.send((y, row(y, width, height), os.getpid()))


async def main(width: int, height: int) -> tuple[list[bytes], Counter[int], float]:
    """(the rows, how many of them each process drew, seconds)"""
    rows = chan(16)
    started = time.perf_counter()
    for y in range(height):
        go(draw_row, y, width, height, rows)
    picture, share = [b""] * height, Counter[int]()
    for _ in range(height):
        y, pixels, pid = await rows.recv()
        picture[y] = pixels
        share[pid] += 1
    return picture, share, time.perf_counter() - started


def png(picture: list[bytes]) -> bytes:
    """The rows as a PNG file with a palette of 256 colours. Source: the PNG specification, 11.2."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        named = kind + data
        return struct.pack(">I", len(data)) + named + struct.pack(">I", zlib.crc32(named))

    header = struct.pack(">IIBBBBB", len(picture[0]), len(picture), 8, 3, 0, 0, 0)
    palette = b"\0\0\0" + bytes(min(255, n * step) for n in range(1, 256) for step in (2, 5, 11))
    body = zlib.compress(b"".join(b"\0" + pixels for pixels in picture))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part)
        for part in ((b"IHDR", header), (b"PLTE", palette), (b"IDAT", body), (b"IEND", b""))
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", type=at_least_1, default=720)
    parser.add_argument("--height", type=at_least_1, default=480)
    parser.add_argument("--out", default="mandelbrot.png", metavar="FILE")


def demo(args: argparse.Namespace) -> int:
    picture, share, seconds = mpgort.run(main, args.width, args.height, procs=args.procs)
    Path(args.out).write_bytes(png(picture))
    print(f"{args.out}: {args.width} x {args.height} in {seconds:.2f} s")
    for pid, rows in sorted(share.items()):
        print(f"M with pid {pid}: {rows} rows")
    started = time.perf_counter()
    reference = [row(y, args.width, args.height) for y in range(args.height)]
    alone = time.perf_counter() - started
    same = picture == reference
    print(f"one process: {alone:.2f} s, speed-up {alone / seconds:.2f} x")
    print(f"the two pictures are {'identical' if same else 'DIFFERENT'}")
    return 0 if same else 1
