"""What a firmware image of its own freezes, for MicroPython's `make FROZEN_MANIFEST=.../manifest.py`.

The codec comes from the agent's folder: one copy in the world. boot.py and main.py are frozen too, so the image
needs no file but k_stick.
"""

include("$(PORT_DIR)/boards/manifest.py")  # noqa: F821  the manifest language's own functions
package("qrng", base_path=".", opt=2)  # noqa: F821
package(  # noqa: F821
    "edgeseal",
    (
        "stick/__init__.py",
        "stick/frame.py",
        "stick/health.py",
        "stick/mac.py",
        "stick/messages.py",
    ),
    base_path="../../agent",
    opt=2,
)
module("boot.py", base_path=".")  # noqa: F821
module("main.py", base_path=".")  # noqa: F821
