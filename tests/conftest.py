import os
import signal

from browser import browser, open_page  # noqa: F401  # fixtures
from fake_endpoint import serve  # noqa: F401  # fixture


# Set before any Hugging Face library is imported: a test that reaches for the network must fail, not wait.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A shell's background jobs ignore it, and so would what the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
