# Names and arguments as in Slicer's CMake/SlicerMacroBuildScriptedModule.cmake and SlicerMacroPythonTesting.cmake, and in
# CTK's CMake/ctkMacroCompilePythonScript.cmake.

function(_install_listed source_dir destination)
  foreach(file IN LISTS ARGN)
    if(IS_ABSOLUTE "${file}" OR file MATCHES "\\.\\.")
      message(FATAL_ERROR "'${file}' would be copied outside the folder of scripted modules")
    endif()
    if(NOT EXISTS "${source_dir}/${file}" OR IS_DIRECTORY "${source_dir}/${file}")
      message(FATAL_ERROR "given nonexistent file '${file}'")
    endif()
    get_filename_component(folder "${file}" DIRECTORY)
    install(FILES "${source_dir}/${file}" DESTINATION "${destination}/${folder}")
  endforeach()
endfunction()

macro(ctkMacroCompilePythonScript)
  cmake_parse_arguments(
    MY "NO_INSTALL_SUBDIR;GLOBAL_TARGET" "TARGET_NAME;SOURCE_DIR;DESTINATION_DIR;INSTALL_DIR" "SCRIPTS;RESOURCES" ${ARGN}
    )
  if(MY_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "Unknown keywords given to ctkMacroCompilePythonScript(): '${MY_UNPARSED_ARGUMENTS}'")
  endif()
  foreach(name TARGET_NAME SCRIPTS DESTINATION_DIR INSTALL_DIR)
    if("${MY_${name}}" STREQUAL "")
      message(FATAL_ERROR "${name} is mandatory")
    endif()
  endforeach()
  if("${MY_SOURCE_DIR}" STREQUAL "")
    set(MY_SOURCE_DIR "${CMAKE_CURRENT_SOURCE_DIR}")
  endif()
  add_custom_target(${MY_TARGET_NAME}) # as there, no two calls can have the same name
  _install_listed("${MY_SOURCE_DIR}" "${MY_INSTALL_DIR}" ${MY_SCRIPTS} ${MY_RESOURCES})
endmacro()

macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MY_SLICER "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(MY_SLICER_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "Unknown keywords given to slicerMacroBuildScriptedModule(): '${MY_SLICER_UNPARSED_ARGUMENTS}'")
  endif()
  ctkMacroCompilePythonScript(
    TARGET_NAME ${MY_SLICER_NAME}
    SCRIPTS ${MY_SLICER_SCRIPTS}
    RESOURCES ${MY_SLICER_RESOURCES}
    DESTINATION_DIR "${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}"
    INSTALL_DIR "${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}"
    NO_INSTALL_SUBDIR
    )
endmacro()

macro(slicer_add_python_unittest)
  cmake_parse_arguments(MY "" "TESTNAME_PREFIX;SCRIPT" "SLICER_ARGS" ${ARGN})
  if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${MY_SCRIPT}")
    message(FATAL_ERROR "slicer_add_python_unittest given nonexistent file '${MY_SCRIPT}'")
  endif()
  set_property(GLOBAL APPEND PROPERTY PYTHON_UNITTESTS "${MY_SCRIPT}")
endmacro()
