# What Slicer would write into the extension's description file, as one line per key, for the tests to read.
get_property(unittests GLOBAL PROPERTY PYTHON_UNITTESTS)
set(EXTENSION_UNITTESTS "${unittests}")
set(EXTENSION_NAME "${PROJECT_NAME}")
set(description "")
foreach(key NAME HOMEPAGE CONTRIBUTORS DESCRIPTION ICONURL SCREENSHOTURLS DEPENDS CATEGORY LICENSE_FILE README_FILE UNITTESTS)
  string(APPEND description "${key} ${EXTENSION_${key}}\n")
endforeach()
file(WRITE "${CMAKE_BINARY_DIR}/description.txt" "${description}")
