"""Small pictures of many kinds, and what Pillow, torchvision and transformers make of them.

    pip install Pillow==10.2.0 numpy==1.26.4 torch==2.2.0 torchvision==0.17.0 transformers==4.40.1 safetensors
    python make_images.py          # writes beside itself

expected.safetensors holds `<file>/rgb`, Image.convert("RGB") of each picture; `resize/<h>x<w>/<H>x<W>`, Pillow's
bicubic of the pattern of test code; `llava/<w>x<h>` and `openvla/<strategy>/<w>x<h>`, whole transforms of that pattern;
`crop/<w>x<h>`, TensorFlow's crop_and_resize written out in numpy.
"""

import pathlib
import struct
import zlib

import numpy as np
import PIL
import torch
import torchvision.transforms as T
from PIL import Image
from safetensors.numpy import save_file
from transformers import CLIPImageProcessor

HERE = pathlib.Path(__file__).parent
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def pack_rows(samples, depth, rng):
    """Filtered scanlines of samples [h, w, channels]: every filter type occurs."""
    bits = np.unpackbits(samples.astype(">u2").view(np.uint8).reshape(*samples.shape, 2), axis=-1)
    bits = bits[..., 16 - depth:].reshape(samples.shape[0], -1)
    rows = np.packbits(bits, axis=1).astype(int)
    step = max(1, depth * samples.shape[2] // 8)
    out, above = b"", np.zeros(rows.shape[1], int)
    for row in rows:
        kind = int(rng.integers(0, 5))
        left = np.concatenate([np.zeros(step, int), row])[: len(row)]
        corner = np.concatenate([np.zeros(step, int), above])[: len(row)]
        p = left + above - corner
        a, b, c = abs(p - left), abs(p - above), abs(p - corner)
        paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, above, corner))
        guess = [0, left, above, (left + above) // 2, paeth][kind]
        out += bytes([kind]) + ((row - guess) % 256).astype(np.uint8).tobytes()
        above = row
    return out


def write_png(name, colour, depth, width=23, height=17, before=b"", interlaced=False, largest=None):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    samples = rng.integers(0, largest or 1 << depth, (height, width, CHANNELS[colour]))
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
        parts = [samples[y::dy, x::dx] for x, y, dx, dy in passes]
        raw = b"".join(pack_rows(part, depth, rng) for part in parts if part.size)
    else:
        raw = pack_rows(samples, depth, rng)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    data = zlib.compress(raw, 9)
    body = chunk(b"IDAT", data[: len(data) // 2]) + chunk(b"IDAT", data[len(data) // 2:])
    (HERE / name).write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + body + chunk(b"IEND", b""))


def pattern(width, height):
    """A deterministic picture that the tests can make themselves."""
    y, x, c = np.mgrid[0:height, 0:width, 0:3]
    return Image.fromarray(((37 * x + 91 * y + 29 * c + x * y) % 256).astype(np.uint8))


def photo(width, height):
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = np.stack([np.sin(9 * x + 3 * y), np.cos(11 * y - 5 * x), np.sin(21 * x * y)], -1)
    picture = (127 + 120 * waves).astype(np.uint8)
    picture[height // 3: height // 2, width // 4: width // 2] = (250, 10, 30)
    return Image.fromarray(picture)


def crop_and_resize(image, size, area=0.9):
    f = np.float32
    x = np.asarray(image).astype(f) * f(1 / 255)
    side = np.sqrt(f(area))
    begin = (f(1) - side) / f(2)
    end = begin + side

    def samples(n):
        at = begin * f(n - 1) + np.arange(size, dtype=f) * ((end - begin) * f(n - 1) / f(size - 1))
        return np.floor(at).astype(int), np.ceil(at).astype(int), (at - np.floor(at)).astype(f)

    top, bottom, down = samples(x.shape[0])
    left, right, along = samples(x.shape[1])
    along, down = along[None, :, None], down[:, None, None]
    upper = x[top][:, left] + (x[top][:, right] - x[top][:, left]) * along
    lower = x[bottom][:, left] + (x[bottom][:, right] - x[bottom][:, left]) * along
    return np.minimum(np.clip(upper + (lower - upper) * down, 0, 1) * f(255.5), f(255)).astype(np.uint8)


def openvla(image, strategy, size):
    """The transform of OpenVLA's Hugging Face processor, with the constants of the published file."""
    if strategy == "letterbox":
        side = max(image.size)
        left, top = (side - image.size[0]) // 2, (side - image.size[1]) // 2
        image = T.functional.pad(image, (left, top, left, top), fill=(127, 127, 127))
    target = (size, size) if strategy == "resize-naive" else size
    image = T.CenterCrop(size)(T.Resize(target, interpolation=T.InterpolationMode.BICUBIC)(image))
    tensor = T.functional.to_tensor(image)
    dino = T.functional.normalize(tensor, [0.484375, 0.455078125, 0.40625], [0.228515625, 0.2236328125, 0.224609375])
    return torch.vstack([dino, T.functional.normalize(tensor, [0.5] * 3, [0.5] * 3)]).numpy()


def llava(image, size, pad):
    if pad:
        side = max(image.size)
        canvas = Image.new("RGB", (side, side), (122, 116, 104))
        canvas.paste(image, ((side - image.size[0]) // 2, (side - image.size[1]) // 2))
        image = canvas
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return processor(image, return_tensors="np")["pixel_values"][0]


def main():
    assert PIL.__version__ == "10.2.0"
    palette = np.random.default_rng(7).integers(0, 256, 768, dtype=np.uint8).tobytes()
    for interlaced in (False, True):
        tail = "-interlaced.png" if interlaced else ".png"
        for depth in (1, 2, 4, 8, 16):
            write_png(f"grey{depth}{tail}", GREY, depth, interlaced=interlaced)
        for depth in (1, 2, 4, 8):
            entries = chunk(b"PLTE", palette[: 3 << depth])
            write_png(f"palette{depth}{tail}", PALETTE, depth, before=entries, interlaced=interlaced)
        for colour, name in ((RGB, "rgb"), (GREY_ALPHA, "grey-alpha"), (RGBA, "rgba")):
            for depth in (8, 16):
                write_png(f"{name}{depth}{tail}", colour, depth, interlaced=interlaced)
    write_png("grey8-trns.png", GREY, 8, before=chunk(b"tRNS", b"\0\x1b"))
    write_png("grey1-trns.png", GREY, 1, before=chunk(b"tRNS", b"\0\1"))
    write_png("grey16-dark.png", GREY, 16, largest=400)
    write_png("rgb8-trns.png", RGB, 8, before=chunk(b"tRNS", b"\0\x1b\0\xf0\0\0"))
    write_png("palette8-trns.png", PALETTE, 8, before=chunk(b"PLTE", palette) + chunk(b"tRNS", bytes(range(256))))
    write_png("palette8-short.png", PALETTE, 8, before=chunk(b"PLTE", palette[:30]), largest=14)
    write_png("palette4-short.png", PALETTE, 4, before=chunk(b"PLTE", palette[:30]))
    write_png("rgb8-gamma.png", RGB, 8, before=chunk(b"gAMA", struct.pack(">I", 100000)) + chunk(b"sRGB", b"\0"))
    write_png("rgb8-1x1.png", RGB, 8, 1, 1)
    write_png("rgb8-1x7-interlaced.png", RGB, 8, 1, 7, interlaced=True)
    write_png("grey1-65x3.png", GREY, 1, 65, 3)

    jpegs = {
        "444": dict(subsampling=0), "422": dict(subsampling=1), "420": dict(subsampling=2),
        "progressive": dict(progressive=True), "progressive-444": dict(progressive=True, subsampling=0, quality=95),
        "optimized": dict(optimize=True, quality=30), "restarts": dict(restart_marker_blocks=3), "rgb": dict(keep_rgb=True),
    }
    for name, options in jpegs.items():
        photo(53, 38).save(HERE / f"{name}.jpg", **{"quality": 85, **options})
    photo(53, 38).convert("L").save(HERE / "grey.jpg", quality=85)
    photo(53, 38).convert("L").save(HERE / "grey-progressive.jpg", quality=85, progressive=True)
    photo(1, 1).save(HERE / "1x1.jpg")
    photo(17, 129).save(HERE / "17x129.jpg", quality=70)
    turned = Image.Exif()
    turned[0x0112] = 6
    photo(53, 38).save(HERE / "exif-turned.jpg", exif=turned)

    expected = {}
    for path in sorted([*HERE.glob("*.png"), *HERE.glob("*.jpg")]):
        if path.name != "cmyk.jpg":
            expected[f"{path.name}/rgb"] = np.array(Image.open(path).convert("RGB"))
    photo(53, 38).convert("CMYK").save(HERE / "cmyk.jpg", quality=60)

    for (w, h), (W, H) in [((20, 15), (4, 4)), ((20, 15), (25, 6)), ((1, 1), (5, 3)), ((1, 7), (8, 8)), ((7, 1), (3, 9)),
                           ((31, 33), (32, 32)), ((63, 65), (64, 64)), ((64, 64), (63, 65)), ((127, 129), (17, 31)),
                           ((1021, 3), (13, 13)), ((5, 1000), (11, 2)), ((19, 23), (19, 7)), ((19, 23), (7, 23)),
                           ((2, 2), (33, 31)), ((300, 200), (1, 1))]:
        expected[f"resize/{w}x{h}/{W}x{H}"] = np.array(pattern(w, h).resize((W, H), Image.BICUBIC))
    for w, h in [(40, 31), (31, 40), (33, 33), (17, 51), (9, 9), (5, 8), (60, 27)]:
        image = pattern(w, h)
        expected[f"llava/crop/{w}x{h}"] = llava(image, 9, False)
        expected[f"llava/pad/{w}x{h}"] = llava(image, 9, True)
        for strategy in ("resize-naive", "resize-crop", "letterbox"):
            expected[f"openvla/{strategy}/{w}x{h}"] = openvla(image, strategy, 9)
        expected[f"crop/{w}x{h}"] = crop_and_resize(image, 11)
    save_file({k: np.ascontiguousarray(v) for k, v in expected.items()}, HERE / "expected.safetensors")


main()
