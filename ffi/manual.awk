# ipcmutex(3) out of the header: awk -f manual.awk include/ipcmutex.h
#
# The preamble comes first, with its own headings; then each function, type and constant under its own comment.

function escaped(text) {
    gsub(/\\/, "\\e", text)
    gsub(/-/, "\\-", text)
    if (text ~ /^[.']/) text = "\\\\\\&" text
    return text
}

function out(text) { body = body text "\n" }

# Ends what is open: a block of lines that are kept as they are.
function flow() {
    if (kept) out(".fi\n.RE")
    kept = 0
}

function keep(text) {
    if (!kept) out(".PP\n.RS 2\n.nf")
    kept = 1
    out(escaped(text))
}

# One line of prose: "- " begins an item.
function prose(text) {
    if (text == "") { flow(); out(".PP"); return }
    flow()
    if (sub(/^- /, "", text)) out(".IP \\(bu 2")
    out(escaped(text))
}

function preamble(line) {
    sub(/^ \*( |$)/, "", line)
    if (line ~ /^Generated from/) return
    if (line ~ /^ipcmutex: /) return
    if (line ~ /^[A-Z][A-Za-z, +]+$/ && line ~ /^[A-Z][A-Z]/) {
        flow()
        sub(/, before anything else/, "", line)
        out(".SH " toupper(line))
        named = 1
        return
    }
    if (line == "") { if (!kept) prose(""); else flow(); return }
    bare = line
    sub(/^ +/, "", bare)
    # Examples and tables stay as they are.
    if ((!named && line ~ /^ /) || bare ~ /[^.]  /) keep(line)
    else prose(bare)
}

# The comment that was read, for what follows it.
function comment(   at) {
    for (at = 1; at <= lines; at++) prose(said[at])
    flow()
    lines = 0
}

/^#define IPCMUTEX_VERSION "/ { split($0, parts, "\""); version = parts[2] }

NR == 1 { part = "preamble"; next }
part == "preamble" && /^ \*\// { flow(); part = ""; next }
part == "preamble" { preamble($0); next }

/^\/\*\* .*\*\/$/ { sub(/^\/\*\* /, ""); sub(/ \*\/$/, ""); lines = 1; said[1] = $0; next }
/^\/\*\*$/ { part = "comment"; lines = 0; next }
part == "comment" && /^ \*\/$/ { part = ""; next }
part == "comment" { sub(/^ \*( |$)/, ""); said[++lines] = $0; next }

# Structs and enumerations are shown as they are, comments and all.
/^(typedef struct|enum) / { part = "block"; block = ""; shown = $0 == "typedef struct {" ? "" : $2 }
part == "block" {
    block = block escaped($0) "\n"
    if (/^}/) {
        if (shown == "") { shown = $2; sub(/;/, "", shown) }
        else shown = "enum " shown
        body_was = body; body = ""
        comment()
        types = types ".SS " shown "\n" body ".PP\n.nf\n" block ".fi\n"
        body = body_was
        part = ""
    }
    next
}
/^typedef / {
    name = $0
    sub(/\)\(.*/, "", name); sub(/;.*/, "", name); sub(/.*[ *]/, "", name)
    body_was = body; body = ""
    comment()
    types = types ".SS " name "\n.nf\n" escaped($0) "\n.fi\n.PP\n" body
    body = body_was
    next
}
/^#define IPCMUTEX_[A-Z_]+ / { body_was = body; body = ""; comment(); types = types ".TP\n.B " $2 "\n" body; body = body_was; next }

# A function may go over several lines.
/^(int|const char \*|uint32_t) ?ipcmutex_[a-z_]+\(/ { part = "function"; prototype = "" }
part == "function" {
    prototype = prototype (prototype == "" ? "" : "\n") escaped($0)
    if (/;$/) {
        name = prototype
        sub(/\(.*/, "", name); sub(/.*[ *]/, "", name)
        synopsis = synopsis prototype "\n"
        body_was = body; body = ""
        comment()
        functions = functions ".SS " name "()\n.nf\n" prototype "\n.fi\n.PP\n" body
        body = body_was
        part = ""
    }
    next
}

END {
    print ".TH IPCMUTEX 3 \"\" \"ipcmutex " version "\" \"ipcmutex\""
    print ".nh"
    print ".SH NAME\nipcmutex \\- one lock for threads, processes and hosts, named by a URL"
    print ".SH SYNOPSIS\n.nf\n#include <ipcmutex.h>\n\n" synopsis ".fi"
    print ".SH DESCRIPTION"
    printf "%s", body
    print ".SH FUNCTIONS"
    printf "%s", functions
    print ".SH TYPES AND CONSTANTS"
    printf "%s", types
    print ".SH SEE ALSO\n.BR ipcmutex (1)"
}
