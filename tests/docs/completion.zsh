# Types a line and Tab into an interactive zsh that has the scripts of a directory, and writes what the line has
# become into a file. Goes on until it is ended. Arguments: directory, file, line.
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "fpath=(${(q)1} \$fpath); autoload -Uz compinit; compinit -u -D
tell() { zle complete-word; print -r -- \"\$BUFFER\" >${(q)2}.part && command mv ${(q)2}.part ${(q)2} }
zle -N tell; bindkey '^I' tell; print -r -- rea''dy"
zpty -r shell said '*ready*'
zpty -w -n shell "$3"$'\t'
while zpty -r shell said; do :; done
