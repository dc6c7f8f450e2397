"""Parameters of notebook 06."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, PositiveInt

from nbutils.core.files import Json
from nbutils.core.llamacpp import installed
from nbutils.core.settings import STEERING, nearest
from nbutils.core.settings import Settings as BaseSettings

_NAMES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
grok2-community gemma unknown other
"""
LICENCES = sorted(_NAMES.split())
"""The licences that the Hub knows, as it spells them (docs: Hub → Repositories → Licenses, November 2026)."""

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
"""A name on the Hub: `owner/name`, or the `name` alone of the few old models and datasets that have no owner."""
HubId = Annotated[str, Field(pattern=rf"^({HUB_ID.pattern})?$", description="on the Hub, such as 'owner/name'")]
GgufKind = Literal["f16", "q8_0"]
KINDS = get_args(GgufKind)
"""What a GGUF file's weights are written as."""
Language = Annotated[str, Field(pattern="^([a-z]{2,3}|multilingual|code)$")]
Title = Annotated[str, Field(pattern=r"^[^\r\n]*\S[^\r\n]*$", max_length=96, description="one line")]


def _licence(value: str) -> str:
    if value not in LICENCES:
        close = nearest(value.lower(), LICENCES)
        raise ValueError(f"the Hub knows no such licence ('other' is for any that it does not list).{close}")
    return value


class PublishSettings(BaseSettings):
    """Parameters of the publish stage; explained in the notebook's `parameters` cell."""

    model_name: Title
    license: Annotated[str, AfterValidator(_licence)]
    languages: list[Language] = Field(min_length=1)
    tags: list[Title]
    base_model_id: HubId
    dataset_ids: list[HubId]
    parity_conversations: PositiveInt
    parity_replies: PositiveInt
    parity_tokens: PositiveInt
    gguf: list[GgufKind]
    page: bool
    wllama_dir: Annotated[str, STEERING]
    push: bool
    push_page: bool
    repo_id: str = Field(pattern=r"^([\w.-]+/[\w.-]+)?$")
    private: Annotated[bool, STEERING]
    accept_repeats: Annotated[bool, STEERING]

    def result_parameters(self) -> Json:
        """With whether llama.cpp is there: what nobody could prove is made and proven once it is."""
        return super().result_parameters() | ({"llama.cpp": installed()} if self.gguf else {})
