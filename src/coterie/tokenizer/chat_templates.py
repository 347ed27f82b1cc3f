"""Published chat templates, known by the SHA-256 of their text; a template that is not among them proves nothing.

The same template circulates with a line break written as `\\n` or as itself, and with or without one at its end
(GGUF and JSON disagree), so both are made alike before hashing. Nothing here can run a template.
"""

import hashlib

__all__ = ["fingerprint", "form_of_template"]

_FORMS = {
    # Mixtral-8x7B-Instruct-v0.1, first revisions; Mistral-7B-Instruct-v0.2
    "26a59556925c987317ce5291811ba3b7f32ec4c647c400c6cc7e3a9993007ba7": "mistral-v1",
    # Mistral-7B-Instruct-v0.1
    "7e995b379ec01747807246483647cd99030abf331653f1119e16d7ac041a3495": "mistral-v1",
    # Mixtral-8x7B-Instruct-v0.1 and Mistral-7B-Instruct-v0.2, later revisions
    "1c6594f8393552ef16bbf3ddecb67d8258fb8d66339a1a092a8f8496061f02d3": "mistral-v1",
    # Llama-2-7b-chat-hf and its sisters
    "9780fae5bfea3cfd7be37d328c6edfd296a8869be8131495bbe7eb37e780c88c": "llama-2",
    # OpenHermes-2.5-Mistral-7B
    "153280e3ff55d19da1398bdb3914ee2a51b80429bfaedde11d7d216c39db80f3": "chatml",
    # dolphin-2.x-mixtral-8x7b
    "58c1a1f04baa7adaeaba1f90267c3d57d9396f0c1f0129bdde9e76d3c6784af7": "chatml",
    # Nous-Hermes-2-Mixtral-8x7B-DPO
    "a805e50fed68938a076b07e2e602639611b50b1ced0e50f11eb92f1ba25be4dc": "chatml",
    # with a BOS, spaced
    "49aa7cb516942cc5a17d45ed2939828e3b5e4188dc487a3c4b64a570e5b5111f": "chatml",
    # zephyr-7b-beta
    "66291cf0045c2425a3a667cf3cbb7af2b11f09e025c02f97245323ab79119362": "zephyr",
}


def form_of_template(template: str) -> str | None:
    """The name of the chat form that the template writes, or None for an unknown one."""
    return _FORMS.get(fingerprint(template))


def fingerprint(template: str) -> str:
    """The SHA-256 of a template in its usual spelling, in hex."""
    usual = template.replace("\r\n", "\n").replace("\\n", "\n").strip()
    return hashlib.sha256(usual.encode("utf-8", "replace")).hexdigest()
