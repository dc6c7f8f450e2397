"""HellaSwag from the folder of evaluation data, as a task of a user's own."""

import gzip
import shutil
from pathlib import Path

HELLASWAG = """
task: hellaswag
dataset_path: json
dataset_name: null
dataset_kwargs: {data_files: {validation: validation.jsonl}}
output_type: multiple_choice
training_split: null
validation_split: validation
test_split: null
process_docs: !function utils.process_docs
doc_to_text: "{{query}}"
doc_to_target: "{{label}}"
doc_to_choice: "choices"
metric_list: [{metric: acc}]
"""


def hellaswag_task(folder: Path, evaldata: Path) -> Path:
    """HellaSwag as a task of the user's: the stock task, but for where its data lies."""
    import lm_eval

    folder.mkdir()
    shutil.copy(Path(lm_eval.__file__).parent / "tasks" / "hellaswag" / "utils.py", folder)
    (folder / "validation.jsonl").write_bytes(
        gzip.decompress((evaldata / "hellaswag_validation.jsonl.gz").read_bytes())
    )
    (folder / "hellaswag.yaml").write_text(HELLASWAG)
    return folder
