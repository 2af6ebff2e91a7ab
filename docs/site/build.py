"""Build the site: `python docs/site/build.py [folder]`, build/site by default. Needs the packages of `.[site]`, and no network.

Warnings are errors: a link that leads nowhere, a formula that cannot be read, a figure without words all end the build.
"""

import shutil
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def main() -> int:
    sys.path[:0] = [str(HERE), str(ROOT)]
    from sphinx.cmd.build import main as sphinx
    from stage import stage
    from words import LANGUAGES
    began = time.perf_counter()
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "site"
    for old in ("html", "doctrees", "source"):                 # all anew: pages of another time would stay otherwise
        shutil.rmtree(folder / old, ignore_errors=True)
    code = 0
    for language in LANGUAGES:                                 # English is the site, the others are folders in it
        source, out = stage(folder / "source" / language, language), folder / "html" / ("" if language == "en" else language)
        code |= sphinx(["-b", "html", "-c", str(HERE), "-d", str(folder / "doctrees" / language), "-D", f"language={language}",
                        "-q", "--fail-on-warning", "--keep-going", str(source), str(out)])
    print(f"{folder / 'html' / 'index.html'}  {time.perf_counter() - began:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
