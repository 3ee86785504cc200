"""What Schemathesis does not know of itself: image files, to be sent where a body is one.

Schemathesis imports this by the variable SCHEMATHESIS_HOOKS.
"""

from __future__ import annotations

import schemathesis
from hypothesis import strategies as st

from serve_app.openapi.model import IMAGE_TYPES
from serve_app.openapi.parts import BINARY
from tests.serve_app.seed_files import seed_files

FILES = st.sampled_from(sorted(seed_files().values())) | st.binary(max_size=200)

for media_type in (BINARY, *IMAGE_TYPES):
    schemathesis.openapi.media_type(media_type, FILES)
schemathesis.openapi.format("binary", FILES)
