"""The text of a Word document."""

import io
import zipfile

import mammoth

from refine_server.server.files.conversion.found import ConversionError, Found, Limits
from refine_server.server.files.conversion.html import read_html

MAX_MEMBERS = 10_000
MAX_UNPACKED_BYTES = 256 * 2**20
"""Most bytes of all members together: a document's text is a small part of it."""


def read(data: bytes, limits: Limits) -> Found:
    """Return the text of a Word document; its paragraphs, lists and tables as those of HTML.

    Raises:
        ConversionError: it is too large when unpacked, encrypted, or damaged.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
    if any(member.flag_bits & 1 for member in members):
        raise ConversionError("encrypted_file", "is encrypted. Save it without a password first")
    unpacked = sum(member.file_size for member in members)
    if len(members) > MAX_MEMBERS or unpacked > MAX_UNPACKED_BYTES:
        reason = f"has {unpacked} bytes in {len(members)} members when it is unpacked"
        reason += f"; at most {MAX_UNPACKED_BYTES} in {MAX_MEMBERS} are read"
        raise ConversionError("file_too_large", reason)
    no_images = mammoth.images.img_element(lambda image: {"src": ""})
    html = mammoth.convert_to_html(io.BytesIO(data), convert_image=no_images).value
    return Found(text=read_html(html).text)
