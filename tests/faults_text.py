from dataclasses import dataclass
@dataclass(frozen=True)
class Want:
    kind: str
    words: tuple = ()
    lost: tuple = ()
def heard(): return Want("heard")
def skip(*words, lost=()): return Want("skip", words, tuple(lost))
def error(*words): return Want("error", words)
TEXTS=[]
