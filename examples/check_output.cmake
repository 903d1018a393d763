# Runs PROGRAM with the arguments that the first line of SOURCE names (`// Run: NAME ARGUMENT ...`, paths relative to the
# working directory, build/ being the folder BUILD) and compares what it prints with the .output beside SOURCE. Times
# differ from machine to machine: every `<number> ms` counts as `N ms`.
file(STRINGS ${SOURCE} command LIMIT_COUNT 1)
string(REGEX REPLACE "^// Run: [^ ]+ ?" "" command "${command}")
separate_arguments(arguments UNIX_COMMAND "${command}")
list(TRANSFORM arguments REPLACE "^build/" "${BUILD}/")
execute_process(COMMAND ${PROGRAM} ${arguments} RESULT_VARIABLE status OUTPUT_VARIABLE printed ERROR_VARIABLE notes)
if(NOT status EQUAL 0)
    message(FATAL_ERROR "${PROGRAM} ${command}: ${status}\n${notes}")
endif()

string(REGEX REPLACE "\\.cpp$" ".output" record ${SOURCE})
file(READ ${record} recorded)
foreach(text IN ITEMS printed recorded)
    string(REGEX REPLACE "[0-9.]+ ms" "N ms" ${text} "${${text}}")
endforeach()
if(NOT printed STREQUAL recorded)
    message(FATAL_ERROR "${record} says\n${recorded}\nbut the program printed\n${printed}")
endif()
