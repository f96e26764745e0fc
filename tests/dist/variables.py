"""Write the environment that a launcher gave this process into FOLDER/RANK."""

import json
import os
import sys
from pathlib import Path

(Path(sys.argv[1]) / os.environ["RANK"]).write_text(json.dumps(dict(os.environ)))
